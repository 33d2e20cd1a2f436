import t from 'tap';
import { collectGarbage } from '../../test/collectGarbage.ts';
import { journalFor } from '../../test/sim/journals.ts';
import { Engine } from './engine.ts';
import type { JobDefinition } from './step.ts';

void t.test(
  'nothing of a job that has ended stays in memory, whatever has listened to its signal',
  async (t) => {
    const { journal } = await journalFor(t);
    const engine = new Engine({ journal });
    const signals: WeakRef<AbortSignal>[] = [];
    const definition: JobDefinition<object> = {
      kind: 'backup',
      parse: () => ({}),
      settle: async () => ({ kind: 'end', state: 'failed' }),
      steps: () => [
        {
          name: 'retain',
          state: 'snapshotting',
          cancellable: true,
          deadlineMs: 60_000,
          act: async (context) => {
            signals.push(new WeakRef(context.signal));
            context.signal.addEventListener('abort', () => context.learn({ given: 'up' }));
          },
        },
      ],
    };
    const about = { machineUuid: 'm', machineName: 'm', state: 'initialized', facts: {} } as const;
    for (let job = 0; job < 5; job += 1) await engine.run(definition, engine.create(definition, about).id);
    await collectGarbage();
    t.equal(signals.length, 5);
    // That of the last one may be on the stack still.
    t.ok(signals.filter((signal) => signal.deref() !== undefined).length <= 1);
  },
);
