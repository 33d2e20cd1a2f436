import { setTimeout as sleep } from 'node:timers/promises';

import t from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import * as z from 'zod';

import { errorRecord } from '../../common/errors.ts';
import { deadOwner, jobOf, journalFor } from '../../test/sim/journals.ts';
import { MergeError } from '../merge/errors.ts';
import { Engine } from './engine.ts';
import type { EngineListener } from './engineListener.ts';
import type { JobProgress, JobState } from './job.ts';
import type { Journal } from './journal.ts';
import type { JobDefinition, Step, StepContext } from './step.ts';

const factsSchema = z.object({
  seen: z.array(z.string()).default([]),
  intended: z.string().exactOptional(),
  committed: z.string().exactOptional(),
});

type Facts = z.infer<typeof factsSchema>;

type Context = StepContext<Facts>;

function stepOf(name: string, changes: Partial<Step<Facts>> = {}): Step<Facts> {
  const act = async (context: Context): Promise<void> =>
    context.learn({ seen: [...context.facts.seen, name] });
  return { name, state: 'snapshotting', cancellable: false, act, ...changes };
}

function definitionOf(
  steps: readonly Step<Facts>[],
  settle: JobDefinition<Facts>['settle'],
): JobDefinition<Facts> {
  return { kind: 'backup', parse: (record) => factsSchema.parse(record), steps: () => steps, settle };
}

const failed = new MergeError('CANNOT_MERGE_DISK_IMAGES', 'no', { hint: 'look' });
const neverSettles: JobDefinition<Facts>['settle'] = async () => {
  throw new Error('must not be asked');
};

function create(engine: Engine, definition: JobDefinition<Facts>): string {
  return engine.create(definition, {
    machineUuid: 'm',
    machineName: 'm',
    state: 'initialized',
    facts: { seen: [] },
  }).id;
}

function settling(...settlements: (Awaited<ReturnType<JobDefinition<Facts>['settle']>> | Error)[]): {
  readonly settle: JobDefinition<Facts>['settle'];
  readonly causes: unknown[];
} {
  const causes: unknown[] = [];
  return {
    causes,
    settle: async (_, cause) => {
      causes.push(cause);
      const next = settlements.shift();
      if (next === undefined) throw new Error('asked too often');
      if (next instanceof Error) throw next;
      return next;
    },
  };
}

/** What the journal's file says at a moment. */
function inJournal(journal: Journal, id: string): readonly string[] {
  return journal.steps(id).map(({ name, status }) => `${name} ${status}`);
}

void t.test('an intent is durable before its step acts, a result before the next one does', async (t) => {
  const { journal, open } = await journalFor(t);
  const other = open();
  const points: string[] = [];
  const seen: unknown[] = [];
  const look = async (context: Context): Promise<void> => {
    seen.push([
      inJournal(other, context.jobId),
      other.get(context.jobId).state,
      other.get(context.jobId).record,
    ]);
    context.learn({ seen: [...context.facts.seen, 'x'] });
  };
  const definition = definitionOf(
    [
      stepOf('one', { act: look, intend: () => ({ intended: 'first' }) }),
      stepOf('two', { act: look, state: 'merging', reached: 'merged' }),
      stepOf('three', { act: look, state: 'retaining' }),
    ],
    neverSettles,
  );
  const engine = new Engine({ journal, onPoint: (point) => void points.push(point) });
  const row = await engine.run(definition, create(engine, definition));
  t.same(seen, [
    [['one begun'], 'snapshotting', { seen: [], intended: 'first' }],
    [['one done', 'two begun'], 'merging', { seen: ['x'], intended: 'first' }],
    [['one done', 'two done', 'three begun'], 'retaining', { seen: ['x', 'x'], intended: 'first' }],
  ]);
  t.match(row, { state: 'finished', error: null, owner: null, holdsMachine: false });
  t.match(row.record, { seen: ['x', 'x', 'x'] });
  t.ok(journal.steps(row.id).every(({ status, durationMs }) => status === 'done' && durationMs !== null));
  t.same(
    points,
    ['one', 'two', 'three'].flatMap((name) => [`backup/before:${name}`, `backup/after:${name}`]),
  );
});

void t.test(
  'a committed fact is durable at once, a learned one with the end of its step, also of one that fails',
  async (t) => {
    const { journal, open } = await journalFor(t);
    const other = open();
    const within: unknown[] = [];
    const act = async (context: Context): Promise<void> => {
      context.commit({ committed: 'now' });
      context.learn({ seen: ['late'] });
      within.push(other.get(context.jobId).record);
      throw failed;
    };
    const definition = definitionOf([stepOf('one', { act })], async (context) => {
      within.push(other.get(context.jobId).record, inJournal(other, context.jobId));
      return { kind: 'end', state: 'failed', error: errorRecord(failed) };
    });
    const engine = new Engine({ journal });
    const row = await engine.run(definition, create(engine, definition));
    t.same(within, [{ seen: [], committed: 'now' }, { seen: ['late'], committed: 'now' }, ['one failed']]);
    t.match(row, {
      state: 'failed',
      error: { code: 'CANNOT_MERGE_DISK_IMAGES', hint: 'look' },
      holdsMachine: false,
    });
  },
);

void t.test(
  'settle says how a failed job goes on: further, to its end, or parked with the machine',
  async (t) => {
    for (const [settlement, expected] of [
      [
        { kind: 'continue', from: 'two' },
        { state: 'finished', holdsMachine: false },
      ],
      [
        { kind: 'end', state: 'cancelled' },
        { state: 'cancelled', holdsMachine: false },
      ],
      [
        { kind: 'park', error: errorRecord(failed) },
        { state: 'failed', holdsMachine: true, error: { code: 'CANNOT_MERGE_DISK_IMAGES' } },
      ],
      [
        new Error('settle fails itself'),
        {
          state: 'failed',
          holdsMachine: true,
          error: { code: 'INTERNAL_ERROR', message: 'settle fails itself' },
        },
      ],
    ] as const) {
      const { journal } = await journalFor(t);
      const { settle, causes } = settling(settlement);
      const fail = async (): Promise<void> => {
        throw failed;
      };
      const definition = definitionOf([stepOf('one', { act: fail }), stepOf('two')], settle);
      const engine = new Engine({ journal });
      const row = await engine.run(definition, create(engine, definition));
      t.match(row, { ...expected, owner: null });
      t.same(causes, [failed]);
    }
  },
);

void t.test('a job that fails again and again is parked, in order', async (t) => {
  const { journal } = await journalFor(t);
  let settled = 0;
  let acted = 0;
  const act = async (): Promise<void> => {
    acted += 1;
    throw failed;
  };
  const definition = definitionOf([stepOf('one', { act })], async () => {
    settled += 1;
    return { kind: 'continue', from: 'one' };
  });
  const engine = new Engine({ journal });
  const row = await engine.run(definition, create(engine, definition));
  t.match(row, { state: 'failed', holdsMachine: true, error: { code: 'CANNOT_MERGE_DISK_IMAGES' } });
  t.equal(settled, acted, 'after every failure, also the last one, the world was put in order');
  t.ok(acted <= 6, `${acted} attempts`);
});

void t.test(
  'a job of a dead owner, or a parked one, starts with settle; one of a living owner is left alone',
  async (t) => {
    const { journal } = await journalFor(t);
    const engine = new Engine({ journal });
    const { settle, causes } = settling(
      { kind: 'continue', from: 'two' },
      { kind: 'park', error: errorRecord(failed) },
      { kind: 'end', state: 'failed' },
    );
    const definition = definitionOf([stepOf('one'), stepOf('two')], settle);
    const orphan = journal.create({ ...jobOf('m', deadOwner), record: { seen: ['before'] } });
    const row = await engine.recover(definition, orphan.id);
    t.match(row, { state: 'finished', record: { seen: ['before', 'two'] } });
    const parked = journal.create({ ...jobOf('m', deadOwner), record: { seen: [] } });
    t.match(await engine.recover(definition, parked.id), { holdsMachine: true });
    t.match(await engine.recover(definition, parked.id), {
      holdsMachine: false,
      state: 'failed',
      error: null,
    });
    t.same(causes, [undefined, undefined, undefined]);
    const living = create(engine, definition);
    t.equal(await engine.recover(definition, living), undefined);
    t.same(engine.orphaned(), [], 'a job that waits for its turn is not an orphan');
    t.equal(await engine.recover(definition, orphan.id), undefined, 'an ended job');
  },
);

void t.test('a job whose record cannot be read is parked once, and keeps its machine', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  const definition = definitionOf([stepOf('one')], neverSettles);
  const strange = journal.create({ ...jobOf('m', deadOwner), record: { seen: 'by another version' } });
  t.match(await engine.recover(definition, strange.id), {
    state: 'failed',
    holdsMachine: true,
    error: { code: 'JOB_RECORD_UNREADABLE', hint: strange.id },
  });
  t.same(engine.orphaned(), [], 'it is not found again at every look');
  t.match(journal.get(strange.id).record, { seen: 'by another version' }, 'nothing of it is changed');
});

void t.test('a cancel is seen within half a second, in the steps that allow it only', async (t) => {
  const { journal, open } = await journalFor(t);
  const causes: unknown[] = [];
  const settle: JobDefinition<Facts>['settle'] = async (context, cause) => {
    causes.push(cause, context.cancelRequested, context.signal.aborted);
    return { kind: 'end', state: 'cancelled' };
  };
  let requestedAt = 0;
  const firm = stepOf('firm', {
    act: async ({ jobId, signal, cancelRequested }) => {
      requestedAt = performance.now();
      open().requestCancel(jobId);
      t.equal(cancelRequested, false);
      await sleep(700);
      t.equal(signal.aborted, false, 'a step that must not stop in the middle hears nothing');
    },
  });
  const soft = stepOf('soft', {
    cancellable: true,
    act: async ({ signal, jobId }) => {
      requestedAt = performance.now();
      if (!journal.isCancelRequested(jobId)) open().requestCancel(jobId);
      await sleep(60_000, undefined, { signal });
    },
  });
  for (const steps of [[firm, stepOf('after', { cancellable: true })], [soft]]) {
    const engine = new Engine({ journal });
    const definition = definitionOf(steps, settle);
    const row = await engine.run(definition, create(engine, definition));
    t.match(row, { state: 'cancelled', holdsMachine: false, cancelRequested: true });
    t.notOk(
      inJournal(journal, row.id).some((step) => step.startsWith('after')),
      'the next step is not begun',
    );
    t.match(
      causes.splice(0),
      [{ code: 'CANCELLED' }, true, false],
      'what puts things in order is not cancelled itself',
    );
    t.ok(
      performance.now() - requestedAt < (steps[0] === soft ? 900 : 1500),
      `${performance.now() - requestedAt} ms`,
    );
  }
});

void t.test('a step that takes longer than its deadline is stopped and named', async (t) => {
  const { journal } = await journalFor(t);
  const { settle, causes } = settling({ kind: 'end', state: 'failed' });
  const act = async ({ signal }: Context): Promise<void> => sleep(60_000, undefined, { signal });
  const definition = definitionOf([stepOf('slow', { cancellable: true, deadlineMs: 50, act })], settle);
  const engine = new Engine({ journal });
  await engine.run(definition, create(engine, definition));
  t.match(causes, [{ code: 'STEP_DEADLINE_EXCEEDED', message: /slow/, retryable: true }]);
});

void t.test(
  'progress goes to the listener at once, and to watchers in other processes now and then',
  async (t) => {
    const { journal, open } = await journalFor(t);
    const other = open();
    const progresses: JobProgress[] = [];
    const states: JobState[] = [];
    const warnings: string[] = [];
    const listener: EngineListener = {
      progress: (progress) => progresses.push(progress),
      state: (_, state) => states.push(state),
      warning: (_, message) => warnings.push(message),
    };
    const act = async (context: Context): Promise<void> => {
      for (let doneBytes = 0; doneBytes < 100; doneBytes += 1) context.report({ doneBytes, totalBytes: 100 });
      context.warn('beware');
      t.match(
        other.progress(context.jobId),
        { jobId: context.jobId, state: 'merging', step: 'merge', doneBytes: 0 },
        'the first one',
      );
      await context.point('half');
    };
    const points: string[] = [];
    const engine = new Engine({ journal, listener, onPoint: (point) => void points.push(point) });
    const definition = definitionOf(
      [stepOf('merge', { state: 'merging', reached: 'merged', act })],
      neverSettles,
    );
    const row = await engine.run(definition, create(engine, definition));
    t.equal(progresses.length, 100);
    t.same(states, ['merging', 'merged', 'finished']);
    t.same(warnings, ['beware']);
    t.ok(points.includes('backup/merge/half'));
    t.equal(other.progress(row.id), undefined);
  },
);

void t.test('what a step reported before it came to stand is seen in other processes, too', async (t) => {
  const { journal, open } = await journalFor(t);
  const other = open();
  const act = async (context: Context): Promise<void> => {
    context.report({ doneBytes: 0, totalBytes: 100 });
    context.report({ doneBytes: 7, totalBytes: 100 });
    await eventually(() => other.progress(context.jobId)?.doneBytes === 7);
  };
  const engine = new Engine({ journal });
  const definition = definitionOf(
    [stepOf('merge', { state: 'merging', reached: 'merged', act })],
    neverSettles,
  );
  t.match(await engine.run(definition, create(engine, definition)), { state: 'finished' });
});

void t.test('steps may depend on the facts, and the facts decide how a job ends', async (t) => {
  const { journal } = await journalFor(t);
  const fail = async (context: Context): Promise<void> => {
    context.commit({ committed: 'given up' });
    throw failed;
  };
  const definition: JobDefinition<Facts> = {
    ...definitionOf([], async () => ({ kind: 'continue', from: 'drop' })),
    steps: (facts) => (facts.committed === undefined ? [stepOf('one', { act: fail })] : [stepOf('drop')]),
    outcome: (facts) =>
      facts.committed === undefined ? { state: 'finished' } : { state: 'failed', error: errorRecord(failed) },
  };
  const engine = new Engine({ journal });
  t.match(await engine.run(definition, create(engine, definition)), {
    state: 'failed',
    error: { code: failed.code },
    holdsMachine: false,
  });
});

void t.test('a second job of a machine is refused before anything is done', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  const definition = definitionOf([stepOf('one')], neverSettles);
  create(engine, definition);
  t.throws(() => create(engine, definition), { code: 'MACHINE_BUSY' });
  t.equal(journal.list().length, 1);
});

void t.test('a job of this process that nobody works on any more is an orphan', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  // As after a run whose end could not be written, because the journal's disk was full.
  const given = journal.create(jobOf('m'));
  t.same(
    engine.orphaned().map(({ id }) => id),
    [given.id],
  );
  const { settle } = settling({ kind: 'end', state: 'failed' });
  t.match(await engine.recover(definitionOf([stepOf('one')], settle), given.id), {
    state: 'failed',
    holdsMachine: false,
  });
});

void t.test(
  'a journal that cannot be written does not keep the machine from being put in order',
  async (t) => {
    const { journal } = await journalFor(t);
    const errors: unknown[] = [];
    const engine = new Engine({ journal, listener: { error: (_, error) => errors.push(error) } });
    const { settle, causes } = settling({ kind: 'end', state: 'failed' });
    const full = new Error('database or disk is full');
    let writable = true;
    const write = journal.write.bind(journal);
    journal.write = (...parameters) => {
      if (!writable) throw full;
      write(...parameters);
    };
    const fills = { ...stepOf('one'), act: async () => void (writable = false) };
    const definition = definitionOf([fills, stepOf('two')], async (context, cause) => {
      context.commit({ seen: ['in memory'] });
      t.same(context.facts.seen, ['in memory'], 'what cannot be written is known all the same');
      return settle(context, cause);
    });
    await engine.run(definition, create(engine, definition));
    t.equal(causes.length, 1, 'settle was asked');
    t.ok(errors.includes(full), 'and the failure was told');
  },
);
