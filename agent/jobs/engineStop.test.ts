import t from 'tap';
import * as z from 'zod';
import { errorRecord, type StillpointError } from '../../common/errors.ts';
import { journalFor } from '../../test/sim/journals.ts';
import { Engine } from './engine.ts';
import type { JobDefinition, Step } from './step.ts';

const factsSchema = z.object({ done: z.array(z.string()), held: z.boolean().optional() });
type Facts = z.infer<typeof factsSchema>;

/** A step that tells when it has begun, and ends when it is told to, or given up. */
class Stage {
  readonly #begun = Promise.withResolvers<void>();
  readonly #end = Promise.withResolvers<void>();
  readonly step: Step<Facts>;

  constructor(name: string, changes: Partial<Step<Facts>> = {}) {
    const act: Step<Facts>['act'] = async (context) => {
      const { promise, reject } = Promise.withResolvers<never>();
      context.signal.addEventListener('abort', () => reject(new Error('aborted')), { once: true });
      this.#begun.resolve();
      await Promise.race([promise, this.#end.promise]);
      context.learn({ done: [...context.facts.done, name] });
    };
    this.step = { name, state: 'snapshotting', cancellable: false, act, ...changes };
  }

  get begun(): Promise<void> {
    return this.#begun.promise;
  }

  end(): void {
    this.#end.resolve();
  }
}

function jobWith(stages: readonly Stage[]): JobDefinition<Facts> & { readonly causes: unknown[] } {
  const causes: unknown[] = [];
  return {
    kind: 'backup',
    causes,
    parse: (record) => factsSchema.parse(record),
    steps: () => stages.map(({ step }) => step),
    settle: async (_, cause) => {
      causes.push(cause);
      return { kind: 'end', state: 'failed', error: errorRecord(cause) };
    },
  };
}

function begin(engine: Engine, definition: JobDefinition<Facts>): ReturnType<Engine['run']> {
  const facts: Facts = { done: [] };
  const about = { machineUuid: 'm', machineName: 'm', state: 'initialized', facts } as const;
  return engine.run(definition, engine.create(definition, about).id);
}

void t.test('a stop gives up what can be cancelled, as a failure that may be tried again', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  const [reading, after] = [new Stage('read', { cancellable: true }), new Stage('commit')];
  const definition = jobWith([reading, after]);
  const run = begin(engine, definition);
  await reading.begun;
  t.same(engine.canBeLeft, false);
  engine.stop();
  const row = await run;
  t.match(row, { state: 'failed', error: { code: 'AGENT_STOPPED', retryable: true }, holdsMachine: false });
  t.match(definition.causes, [{ code: 'AGENT_STOPPED' }]);
  t.same(engine.atWork, []);
  t.equal(engine.canBeLeft, true, 'nothing is left that could be');
});

void t.test(
  'a stop waits for what must not be cut short, and begins nothing that it would give up',
  async (t) => {
    const { journal } = await journalFor(t);
    const engine = new Engine({ journal });
    const [critical, reading] = [new Stage('swap'), new Stage('read', { cancellable: true })];
    const run = begin(engine, jobWith([critical, reading]));
    await critical.begun;
    engine.stop();
    t.equal(engine.canBeLeft, false);
    critical.end();
    const row = await run;
    t.match(row, { state: 'failed', error: { code: 'AGENT_STOPPED' }, record: { done: ['swap'] } });
    t.same(
      journal.steps(row.id).map(({ name }) => name),
      ['swap'],
    );
  },
);

void t.test('a stop lets the last steps of a job end, when they cannot be given up', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  const [commit, cleanUp] = [new Stage('commit'), new Stage('cleanup')];
  const run = begin(engine, jobWith([commit, cleanUp]));
  await commit.begun;
  engine.stop();
  commit.end();
  cleanUp.end();
  t.match(await run, { state: 'finished', error: null });
});

void t.test(
  'what another process can go on with is not given up, and may be left when its step says so',
  async (t) => {
    const { journal } = await journalFor(t);
    const engine = new Engine({ journal });
    const merge = new Stage('merge', { cancellable: true, canBeLeft: ({ held }) => held !== true });
    let commit: (facts: Partial<Facts>) => void = () => undefined;
    const step: Step<Facts> = {
      ...merge.step,
      act: async (context) => {
        commit = (facts) => context.commit(facts);
        await merge.step.act(context);
      },
    };
    const definition = { ...jobWith([merge]), steps: () => [step] };
    const run = begin(engine, definition);
    await merge.begun;
    engine.stop();
    t.equal(engine.canBeLeft, true);
    t.equal(engine.atWork.length, 1);
    commit({ held: true });
    t.equal(engine.canBeLeft, false, 'the vCPUs stand still');
    commit({ held: false });
    t.equal(engine.canBeLeft, true);
    t.match(
      journal.get(engine.atWork[0] ?? ''),
      { holdsMachine: true, error: null },
      'its row says nothing of it',
    );
    merge.end();
    t.match(await run, { state: 'finished' });
  },
);

void t.test('a cancel is a cancel, whatever else ends', async (t) => {
  const { journal } = await journalFor(t);
  const engine = new Engine({ journal });
  const reading = new Stage('read', { cancellable: true });
  const causes: (StillpointError | undefined)[] = [];
  const definition: JobDefinition<Facts> = {
    ...jobWith([reading]),
    settle: async (_, cause) => {
      causes.push(cause);
      return { kind: 'end', state: 'cancelled' };
    },
  };
  const { id } = engine.create(definition, {
    machineUuid: 'm',
    machineName: 'm',
    state: 'initialized',
    facts: { done: [] },
  });
  journal.requestCancel(id);
  engine.stop();
  t.match(await engine.run(definition, id), { state: 'cancelled' });
  t.match(causes, [{ code: 'CANCELLED' }]);
});
