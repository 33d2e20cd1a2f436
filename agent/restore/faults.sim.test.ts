import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { fillJournal, inTurn, sample, seed } from '../../test/sim/cases.ts';
import { type Crash, endure, Fate, type JobRequest, type Meanwhile } from '../../test/sim/crashes.ts';
import type { Operation } from '../../test/sim/faults.ts';
import { brokenPromises, listed } from '../../test/sim/invariants.ts';
import { describeRefusal, everyCall, type Refusal, Refusals } from '../../test/sim/refusals.ts';
import { type LivingAgent, removeSharedImages, Site } from '../../test/sim/site.ts';
import { readSaveImage } from '../../test/sim/saveImage.ts';
import type { JobRow } from '../jobs/job.ts';
import { RestoreError } from './errors.ts';

/*
 * Nobody dies here but where a case says so: libvirt refuses calls or does not answer, the journal cannot be
 * written, files cannot be removed. With STILLPOINT_TEST_EXHAUSTIVE=1 every combination instead of a sample.
 */
t.teardown(removeSharedImages);

/** A site with a backup whose guest has written more since. */
async function backedUp(): Promise<Site> {
  const site = await Site.create({ autostart: true, targets: ['vda'] });
  const { problems } = await endure(site, 'backup', []);
  if (problems.length > 0) throw new Error(`the backup before the restore: ${problems.join('; ')}`);
  for (const _ of ['after', 'T1']) await site.write();
  return site;
}

/** Number that the guest had written last at T1. */
async function atPoint(site: Site): Promise<number> {
  const [backup] = await listed(site);
  const image = await readSaveImage(join(backup?.directory ?? '', backup?.manifest?.memory?.file ?? ''));
  return image.memory?.sequence ?? -1;
}

async function siteFor(test: Test): Promise<Site> {
  const site = await backedUp();
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

/** The engine's points of a restore, and the calls that it makes from its first step on. */
async function observed(
  request: JobRequest,
): Promise<{ readonly points: readonly string[]; readonly calls: ReadonlyMap<Operation, number> }> {
  await using site = await backedUp();
  const probe = new Refusals();
  const fate: Fate = new Fate(site, undefined, (moment, self) =>
    fate.points.length > 0 ? probe.listen(moment, self) : undefined,
  );
  await endure(site, request, [], fate);
  return { points: [...new Set(fate.points)], calls: probe.calls };
}

const requests = ['in-place', 'new-machine'] as const;
const ways = { 'in-place': await observed('in-place'), 'new-machine': await observed('new-machine') };
/** What a rollback asks of libvirt. */
const undoing: readonly Operation[] = ['machines', 'powerOff', 'define', 'setAutostart', 'start', 'undefine'];

/** Fails calls from the first step on: what a plan asks before is told to the operator at once. */
function inSteps(site: Site, refusals: Refusals): Fate {
  const listen: Meanwhile = (moment, self) =>
    fate.points.length > 0 ? refusals.listen(moment, self) : undefined;
  const fate: Fate = new Fate(site, undefined, listen);
  return fate;
}

void t.test(
  `a restore to which libvirt refuses a call, or does not answer, is finished or undone (seed ${seed})`,
  async (t) => {
    const single = requests.flatMap((request) =>
      everyCall(ways[request].calls, 3).map((one) => ({ request, refused: [one] as readonly Refusal[] })),
    );
    t.comment(
      single.map(({ request, refused }) => `${request}: ${refused.map(describeRefusal).join()}`).join('; '),
    );
    // A step that fails, and a rollback that is refused as well.
    const failing: readonly Operation[] = ['define', 'restoreState', 'resume'];
    const twofold = failing.flatMap((operation) =>
      undoing.flatMap((undo) =>
        (['refused', 'lost'] as const).map((how) => {
          const nth = 1 + (undo === operation ? 1 : (ways['in-place'].calls.get(undo) ?? 0));
          const step: Refusal = { operation, nth: 1, times: 1, how: 'refused' };
          return {
            request: 'in-place' as const,
            refused: [step, { operation: undo, nth, times: how === 'lost' ? 1 : 3, how } as const],
          };
        }),
      ),
    );
    await inTurn(
      [
        ...sample(
          single,
          7,
          ({ request, refused: [one] }) =>
            request === 'in-place' && one?.operation === 'define' && one.times === 3,
        ),
        ...sample(twofold, 5),
      ],
      async ({ request, refused }) => {
        await using site = await backedUp();
        const refusals = new Refusals(refused);
        const { problems, row } = await endure(site, request, [], inSteps(site, refusals));
        t.same(
          problems,
          [],
          `${request}: ${refused.map(describeRefusal).join(', ')} → ${row?.state} ${row?.error?.code ?? ''}`,
        );
      },
    );
  },
);

void t.test(
  'a rollback that libvirt refuses for long leaves a job that the service tries again by itself',
  async (t) => {
    const site = await siteFor(t);
    const { persistent = '', autostart } = site.world.machine('m');
    let isRefusing = false;
    const living = site.openAgent((moment) => {
      if (moment === 'restore/before:define') isRefusing = true;
      if (isRefusing && moment === 'libvirt/before:define')
        throw new RestoreError('WRITTEN_DIFFERS', 'not an error of libvirt: nobody waits for it');
    });
    const row = await restoring(living);
    t.match(row, { state: 'failed', holdsMachine: true, error: { code: 'CANNOT_PUT_BACK' } });
    isRefusing = false;
    await living.life.live(() => living.agent.retryParked());
    t.same(
      await brokenPromises(site, {
        machine: 'running',
        memoryKept: false,
        autostart,
        definition: persistent,
      }),
      [],
    );
  },
);

async function restoring(living: LivingAgent, start?: 'boot'): Promise<JobRow | undefined> {
  const { agent, life } = living;
  return life.live(async () =>
    agent.run(agent.createRestore(await agent.planRestore({ backup: 'm@latest', inPlace: true, start }))),
  );
}

void t.test(
  'a recovered restore to which libvirt refuses the next call of any kind comes to its end',
  async (t) => {
    const operations: readonly Operation[] = [
      ...undoing.slice(0, -1),
      'definition',
      'machine',
      'restoreState',
      'resume',
      'stateDefinition',
    ];
    const points = ways['in-place'].points.slice(1);
    const cases = points.flatMap((moment) =>
      operations.flatMap((operation) => [1, 3].map((times) => ({ moment, operation, times }))),
    );
    await inTurn(sample(cases, 6), async ({ moment, operation, times }) => {
      await using site = await backedUp();
      const { persistent = '', autostart } = site.world.machine('m');
      const crash: Crash = { moment, victim: 'agent' };
      await restoring(site.openAgent(new Fate(site, crash).listen));
      site.buryOwners();
      const { rows } = await site.recover(
        new Refusals([{ operation, nth: 1, times, how: 'refused' }]).listen,
      );
      if (rows[0]?.state === 'finished') site.goOnFrom(await atPoint(site));
      const what = `dead at ${moment}, then ${operation} fails ${times} times → ${rows[0]?.state} ${rows[0]?.error?.code ?? ''}`;
      t.same(
        await brokenPromises(site, {
          machine: 'running',
          memoryKept: false,
          autostart,
          definition: persistent,
        }),
        [],
        what,
      );
    });
  },
);

void t.test(
  'a journal that is full from any moment on keeps no machine down, and tells of no restore that was undone',
  async (t) => {
    const cases = ways['in-place'].points.flatMap((moment) =>
      (['boot', undefined] as const).map((start) => ({ moment, start })),
    );
    await inTurn(
      sample(cases, 6, ({ moment, start }) => start === 'boot' && moment === 'restore/before:define'),
      async ({ moment, start }) => {
        await using site = await backedUp();
        const { persistent = '', autostart } = site.world.machine('m');
        const before = site.lastSequence;
        let makeRoom: (() => void) | undefined;
        const living = site.openAgent((at, self) => {
          if (at === moment) makeRoom ??= fillJournal(self);
        });
        await restoring(living, start).catch((error: unknown) => living.warnings.push(String(error)));
        const what = `full from ${moment}, ${start ?? 'resume'}`;
        t.equal(site.world.machine('m').status.state, 'running', `${what}: it runs at once`);
        const runId = site.world.machine('m').instance?.id;
        makeRoom?.();
        site.buryOwners();
        const { rows } = await site.recover();
        // Before its first step nothing was done and nothing undone: the restore is still to be made.
        if (moment !== 'restore/before:stage') {
          t.equal(site.world.machine('m').instance?.id, runId, `${what}: what runs is not stopped again`);
        }
        if (rows[0]?.state === 'finished') site.goOnFrom(await atPoint(site));
        else t.equal(site.lastSequence, before);
        const problems = await brokenPromises(site, {
          machine: 'running',
          memoryKept: false,
          autostart,
          definition: persistent,
        });
        t.same(problems, [], `${what} → ${rows[0]?.state} ${rows[0]?.error?.code ?? ''}`);
      },
    );
  },
);

/** Nothing of the work directories can be removed while `isStuck`. */
function stuck(from: string): { isStuck: boolean; readonly listen: Meanwhile } {
  let isOn = false;
  const fault = {
    isStuck: true,
    listen: (moment: string): void => {
      isOn ||= moment === from;
      if (isOn && fault.isStuck && moment === 'file/rm')
        throw Object.assign(new Error('EIO: i/o error, rm'), { code: 'EIO' });
    },
  };
  return fault;
}

void t.test(
  'a restored machine that runs is never taken away because what is left cannot be removed',
  async (t) => {
    for (const dies of [false, true]) {
      await using site = await backedUp();
      const { persistent = '', autostart } = site.world.machine('m');
      const fault = stuck(dies ? 'restore/recover/never' : 'restore/before:cleanup');
      let row: JobRow | undefined;
      let living: LivingAgent;
      if (dies) {
        // The machine runs, and nobody has written that down.
        await restoring(
          site.openAgent(new Fate(site, { moment: 'libvirt/after:resume', victim: 'agent' }).listen),
        );
        site.buryOwners();
        const late = stuck('libvirt/before:machines');
        const recovered = await site.recover(late.listen);
        [row, living] = [recovered.rows[0], recovered];
        t.equal(row?.holdsMachine, true);
        late.isStuck = false;
      } else {
        living = site.openAgent(fault.listen);
        row = await restoring(living);
      }
      t.match(row, { state: 'failed', holdsMachine: true }, 'parked');
      const { instance, status } = site.world.machine('m');
      t.match(status, { state: 'running' });
      t.same(
        await site.world.readVolume('m', 'vda'),
        site.expected('vda', await atPoint(site)),
        'on the restored disk',
      );
      site.goOnFrom(await atPoint(site));
      await site.write();
      await site.world.connect().setAutostart(site.uuid, false);
      fault.isStuck = false;
      t.match(await living.life.live(() => living.agent.retry(row?.id ?? '')), {
        state: 'finished',
        holdsMachine: false,
      });
      t.equal(site.world.machine('m').instance, instance, 'it was not stopped');
      t.ok(autostart);
      const wanted = {
        machine: 'running',
        memoryKept: true,
        autostart: false,
        definition: persistent,
      } as const;
      t.same(await brokenPromises(site, wanted), [], 'with the autostart as its owner wants it since');
    }
  },
);

void t.test(
  'an image that cannot be put back parks the job; with the way free its retry puts everything back',
  async (t) => {
    const site = await siteFor(t);
    const { persistent = '', autostart } = site.world.machine('m');
    let isStuck = false;
    const living = site.openAgent((moment) => {
      if (moment === 'libvirt/before:restoreState') {
        isStuck = true;
        throw new Error('the state cannot be loaded');
      }
      if (isStuck && moment === 'file/rename')
        throw Object.assign(new Error('EROFS: read-only file system'), { code: 'EROFS' });
    });
    const row = await restoring(living);
    t.match(row, { state: 'failed', holdsMachine: true, error: { code: 'CANNOT_PUT_BACK' } });
    isStuck = false;
    t.match(await living.life.live(() => living.agent.retry(row?.id ?? '')), {
      state: 'failed',
      holdsMachine: false,
      error: { code: 'CANNOT_START_MACHINE' },
    });
    t.same(
      await brokenPromises(site, {
        machine: 'running',
        memoryKept: false,
        autostart,
        definition: persistent,
      }),
      [],
    );
  },
);

void t.test('a definition that changes in the storage after the plan was made is not used', async (t) => {
  const site = await siteFor(t);
  const { persistent = '', autostart } = site.world.machine('m');
  const [backup] = await listed(site);
  const stored = join(backup?.directory ?? '', backup?.manifest?.definition.file ?? '');
  const definition = await readFile(stored, 'utf8');
  const living = site.openAgent(async (moment) => {
    if (moment === 'restore/before:define') await writeFile(stored, definition.replace('<vcpu', '<vcpu '));
  });
  t.match(await restoring(living), {
    state: 'failed',
    holdsMachine: false,
    error: { code: 'BACKUP_DAMAGED' },
  });
  await writeFile(stored, definition);
  const promises = { machine: 'running', memoryKept: false, autostart, definition: persistent } as const;
  t.same(await brokenPromises(site, promises), [], 'what was there is back');
});
