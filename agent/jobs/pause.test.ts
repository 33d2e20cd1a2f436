import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import { deadOwner, jobOf, journalFor, undoVersion5 } from '../../test/sim/journals.ts';
import { JobError } from './errors.ts';
import { Engine } from './engine.ts';
import type { EngineListener } from './engineListener.ts';
import type { JobRow } from './job.ts';
import { Journal } from './journal.ts';
import { PauseControl } from './pauseControl.ts';
import type { JobDefinition, Step, StepContext } from './step.ts';

const hourMs = 3_600_000;

interface Stage {
  readonly engine: Engine;
  readonly definition: JobDefinition<object>;
  readonly job: JobRow;
  /** The same journal as another process sees it. */
  readonly other: Journal;
  /** Pieces that the step has moved so far. */
  readonly moved: () => number;
  /** Has the step end after the piece at hand. */
  readonly finish: () => void;
  readonly warnings: string[];
}

/** A job whose first step moves one piece after the other until it is told to finish. */
async function stageFor(test: Test, pausable: Step<object>['pausable'] = 'within'): Promise<Stage> {
  const { journal, open } = await journalFor(test);
  const warnings: string[] = [];
  const listener: EngineListener = { warning: (_, message) => void warnings.push(message) };
  const engine = new Engine({ journal, listener });
  let moved = 0;
  const finishing = new AbortController();
  const act = async (context: StepContext<object>): Promise<void> => {
    const { hold, signal } = context;
    while (!finishing.signal.aborted) {
      await hold.take(1, signal);
      moved += 1;
      context.report({ doneBytes: moved });
      await sleep(2, undefined, { signal });
    }
  };
  const definition: JobDefinition<object> = {
    kind: 'backup',
    parse: () => ({}),
    steps: () => [{ name: 'move', state: 'retaining', cancellable: true, pausable, act }],
    settle: (_, cause) =>
      Promise.resolve({ kind: 'end', state: cause instanceof JobError ? 'cancelled' : 'failed' }),
  };
  const job = engine.create(definition, {
    machineUuid: 'm',
    machineName: 'm',
    state: 'initialized',
    facts: {},
  });
  return {
    engine,
    definition,
    job,
    other: open(),
    moved: () => moved,
    finish: () => finishing.abort(),
    warnings,
  };
}

type Test = Parameters<typeof journalFor>[0];

/** Waits until the job is held, as another process sees it. */
async function untilHeld({ other, job }: Stage): Promise<void> {
  await eventually(() => other.get(job.id).pause?.sinceMs != null);
}

void t.test('a pause from another process holds the job within a second, until it is resumed', async (t) => {
  const stage = await stageFor(t);
  const running = stage.engine.run(stage.definition, stage.job.id);
  await eventually(() => stage.moved() > 3);
  const asked = performance.now();
  stage.other.requestPause(stage.job.id, Date.now() + hourMs);
  await untilHeld(stage);
  t.ok(performance.now() - asked < 1000, `${performance.now() - asked} ms`);
  const held = stage.moved();
  // One piece may have been on its way.
  await sleep(600);
  t.ok(stage.moved() <= held + 1, `${stage.moved()} pieces, ${held} when it was held`);
  t.match(stage.other.progress(stage.job.id), { step: 'paused', detail: /^since 20/ });
  stage.other.endPause(stage.job.id);
  await eventually(() => stage.moved() > held + 3);
  t.equal(stage.other.get(stage.job.id).pause, null);
  t.equal(stage.other.progress(stage.job.id)?.step, 'move');
  stage.finish();
  t.match(await running, { state: 'finished', pause: null });
});

void t.test('a job that nobody resumes goes on by itself, and says so', async (t) => {
  const stage = await stageFor(t);
  const running = stage.engine.run(stage.definition, stage.job.id);
  await eventually(() => stage.moved() > 0);
  stage.other.requestPause(stage.job.id, Date.now() + 1200);
  await untilHeld(stage);
  const held = stage.moved();
  await eventually(() => stage.moved() > held + 3);
  t.equal(stage.other.get(stage.job.id).pause, null);
  t.match(stage.warnings, [/nobody resumed it/]);
  stage.finish();
  t.equal((await running).state, 'finished');
});

void t.test('a job that is paused can be cancelled', async (t) => {
  const stage = await stageFor(t);
  const running = stage.engine.run(stage.definition, stage.job.id);
  await eventually(() => stage.moved() > 0);
  stage.other.requestPause(stage.job.id, Date.now() + hourMs);
  await untilHeld(stage);
  stage.other.requestCancel(stage.job.id);
  t.match(await running, { state: 'cancelled', pause: null });
});

for (const how of ['cancelled', 'stopped'] as const)
  void t.test(`a job that is ${how} while it is paused is not held in what it ends with`, async (t) => {
    const { journal, open } = await journalFor(t);
    const other = open();
    const engine = new Engine({ journal });
    const saved = Promise.withResolvers<boolean>();
    const act = async ({ hold, signal }: StepContext<object>): Promise<void> => {
      await once(signal, 'abort');
      saved.resolve(!hold.isClosed);
      signal.throwIfAborted();
    };
    const definition: JobDefinition<object> = {
      kind: 'backup',
      parse: () => ({}),
      steps: () => [{ name: 'move', state: 'retaining', cancellable: true, pausable: 'within', act }],
      settle: () => Promise.resolve({ kind: 'end', state: 'cancelled' }),
    };
    const about = { machineUuid: 'm', machineName: 'm', state: 'initialized', facts: {} } as const;
    const { id } = engine.create(definition, about);
    const running = engine.run(definition, id);
    await eventually(() => journal.steps(id).length === 1);
    other.requestPause(id, Date.now() + hourMs);
    await eventually(() => other.get(id).pause?.sinceMs != null);
    if (how === 'cancelled') other.requestCancel(id);
    else engine.stop();
    t.equal(await saved.promise, true);
    t.match(await running, { state: 'cancelled', pause: null });
  });

void t.test('a step that must come to its end is not held', async (t) => {
  const { journal, open } = await journalFor(t);
  const other = open();
  const seen: unknown[] = [];
  const act = async ({ jobId, hold }: StepContext<object>): Promise<void> => {
    other.requestPause(jobId, Date.now() + hourMs);
    await sleep(700); // more than the owner takes to look
    seen.push(hold.isClosed, other.get(jobId).pause?.sinceMs);
  };
  const definition: JobDefinition<object> = {
    kind: 'backup',
    parse: () => ({}),
    steps: () => [{ name: 'merge', state: 'merging', cancellable: false, act }],
    settle: () => Promise.reject(new Error('must not be asked')),
  };
  const engine = new Engine({ journal });
  const about = { machineUuid: 'm', machineName: 'm', state: 'initialized', facts: {} } as const;
  const row = await engine.run(definition, engine.create(definition, about).id);
  t.same(seen, [false, null]);
  t.match(row, { state: 'finished', pause: null });
});

void t.test('a job that is to be paused before it begins does not begin, and can be cancelled', async (t) => {
  const stage = await stageFor(t, 'before');
  stage.other.requestPause(stage.job.id, Date.now() + hourMs);
  const running = stage.engine.run(stage.definition, stage.job.id);
  await untilHeld(stage);
  t.same(stage.other.steps(stage.job.id), [], 'no step was begun');
  stage.other.requestCancel(stage.job.id);
  t.equal((await running).state, 'cancelled');
  t.equal(stage.moved(), 0);
});

void t.test('a job that was paused is not when another process takes it over', async (t) => {
  const { journal } = await journalFor(t);
  const { id } = journal.create(jobOf('m', deadOwner));
  journal.requestPause(id, Date.now() + hourMs);
  journal.notePaused(id, Date.now());
  t.match(journal.get(id).pause, { sinceMs: Number });
  t.ok(journal.takeOver(id, jobOf('m').owner));
  t.equal(journal.get(id).pause, null);
});

void t.test('a pause ends in time also while the journal cannot be read or written', async (t) => {
  let isBroken = false;
  const untilMs = Date.now() + 50;
  const use = (): void => {
    if (isBroken) throw new JobError('JOURNAL_UNUSABLE', 'the disk is full');
  };
  const control = new PauseControl(
    'j',
    {
      pause: () => (use(), { requestedAtMs: 0, untilMs, sinceMs: null }),
      endPause: use,
      notePaused: use,
    },
    { paused: () => undefined, resumed: () => undefined, expired: () => undefined },
  );
  control.allow(true);
  t.ok(control.hold.isClosed);
  isBroken = true;
  t.throws(() => control.look(), { code: 'JOURNAL_UNUSABLE' });
  t.ok(control.hold.isClosed, 'not before its time');
  await sleep(60);
  t.throws(() => control.look(), { code: 'JOURNAL_UNUSABLE' });
  t.equal(control.hold.isClosed, false);
});

void t.test(
  'a journal of the version before is read as it is, and gets what it lacks when it is written',
  async (t) => {
    const { path, journal } = await journalFor(t);
    const { id } = journal.create(jobOf('m'));
    const { DatabaseSync } = await import('node:sqlite');
    const db = new DatabaseSync(path);
    db.exec(undoVersion5);
    db.close();
    using old = new Journal(path, { readOnly: true });
    t.equal(old.get(id).pause, null);
    using migrated = new Journal(path);
    migrated.requestPause(id, Date.now() + hourMs);
    t.match(migrated.get(id).pause, { sinceMs: null });
  },
);
