import t from 'tap';
import { Hold } from '../../common/hold.ts';
import { Site } from '../../test/sim/site.ts';
import type { StepContext } from '../jobs/step.ts';
import { type BackupFacts, backupFactsSchema } from './facts.ts';
import { plannedRamDiskBytes } from './ramDiskUse.ts';
import { saveSteps } from './saveSteps.ts';

void t.test('only memory that is still going to be written to the RAM disk counts', (t) => {
  const planned = { plan: { stateOnRamDisk: true, memoryBytes: 1000 } };
  t.equal(plannedRamDiskBytes([planned, planned]), 2100);
  t.equal(
    plannedRamDiskBytes([{ plan: { ...planned.plan, stateOnRamDisk: false } }]),
    0,
    'beside the images',
  );
  t.equal(
    plannedRamDiskBytes([{ ...planned, pointInTime: '2026-11-20T15:15:23.123Z' }]),
    0,
    'written already',
  );
  t.equal(plannedRamDiskBytes([{}]), 0, 'not planned yet');
  t.end();
});

void t.test(
  'two backups that plan at the same moment do not both count the same free RAM disk',
  async (t) => {
    await using site = await Site.create({ ramDisk: true });
    // The other one writes its plan down between our look and ours.
    const reserved = [0, 2 ** 50];
    const snapshot = saveSteps({
      hypervisor: site.world.connect(),
      ramDiskReservedBytes: () => reserved.shift() ?? 2 ** 50,
      checkStorages: () => Promise.resolve([]),
      chooseStorages: ({ settings }) => Promise.resolve(settings),
    });
    const { agent } = site.openAgent();
    const job = await agent.createBackup({ machine: 'm', mode: 'save' });
    let facts: BackupFacts | undefined = backupFactsSchema.parse(job.record);
    const context: StepContext<BackupFacts> = {
      jobId: job.id,
      get facts(): BackupFacts {
        if (facts === undefined) throw new Error('not a backup');
        return facts;
      },
      cancelRequested: false,
      signal: new AbortController().signal,
      hold: new Hold(),
      learn: (learned) => void (facts = { ...context.facts, ...learned }),
      commit: (learned) => void (facts = { ...context.facts, ...learned }),
      report: () => undefined,
      warn: () => undefined,
      point: () => Promise.resolve(),
    };
    await snapshot.steps[0]?.act(context);
    await snapshot.close();
    t.match(facts?.plan, { stateOnRamDisk: false, warnings: [/RAM disk/] });
  },
);
