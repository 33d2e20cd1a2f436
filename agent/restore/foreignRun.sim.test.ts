import { join } from 'node:path';
import t, { type Test } from 'tap';
import { endure } from '../../test/sim/crashes.ts';
import { readGuestSequences } from '../../test/sim/images.ts';
import { listed } from '../../test/sim/invariants.ts';
import { readSaveImage } from '../../test/sim/saveImage.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';

t.teardown(removeSharedImages);

/** A restore in place whose agent died at a point, with nobody at work on it since. */
async function orphanedAt(
  test: Test,
  point: string,
): Promise<{ readonly site: Site; readonly atT1: number }> {
  const site = await Site.create({ autostart: true, targets: ['vda', 'vdb'] });
  test.teardown(() => site[Symbol.asyncDispose]());
  const { problems } = await endure(site, 'backup', []);
  if (problems.length > 0) throw new Error(problems.join('; '));
  const [backup] = await listed(site);
  const state = join(backup?.directory ?? '', backup?.manifest?.memory?.file ?? '');
  const atT1 = (await readSaveImage(state)).memory?.sequence ?? -1;
  for (const _ of ['after', 'T1']) await site.write();
  const living = site.openAgent((moment, self) => {
    if (moment === point) self.life.die();
  });
  await living.life.live(async () => {
    const plan = await living.agent.planRestore({ backup: 'm@latest', inPlace: true });
    await living.agent.run(living.agent.createRestore(plan));
  });
  site.buryOwners();
  return { site, atT1 };
}

/** Somebody boots the machine in between, and its guest writes. */
async function ranMeanwhile(site: Site): Promise<void> {
  await site.world.startMachine('m');
  await site.world.write('m', 'vda', foreign);
}

const foreign = 7777;
const points = [
  'restore/after:swap',
  'restore/before:define',
  'restore/after:define',
  'restore/before:start',
];

for (const point of points) {
  void t.test(`a memory state is never resumed on disks that ran after ${point}`, async (t) => {
    const { site, atT1 } = await orphanedAt(t, point);
    await ranMeanwhile(site);
    await site.world.connect().powerOff(site.uuid);
    const { rows } = await site.recover();
    t.match(rows, [{ state: 'finished', holdsMachine: false }]);
    t.equal(site.world.memorySequence('m'), atT1);
    for (const target of site.targets)
      t.same(await readGuestSequences(site.image(target)), site.expected(target, atT1), target);
  });

  void t.test(`a machine that was booted after ${point} and runs stays as it runs`, async (t) => {
    const { site } = await orphanedAt(t, point);
    await ranMeanwhile(site);
    const { rows } = await site.recover();
    t.match(rows, [{ state: 'finished', holdsMachine: false }]);
    t.equal(site.world.memorySequence('m'), foreign, 'it was neither stopped nor given an older memory');
    t.match(site.world.machine('m').status, { state: 'running' });
  });
}

void t.test(
  'a restore that has touched nothing is dropped with its agent, not finished hours later',
  async (t) => {
    for (const point of ['restore/before:stage', 'restore/after:stage']) {
      const { site } = await orphanedAt(t, point);
      await site.write();
      const { rows } = await site.recover();
      t.match(rows, [{ state: 'failed', holdsMachine: false, error: { code: 'AGENT_DIED' } }], point);
      t.equal(site.world.memorySequence('m'), site.lastSequence, 'what the guest did since is kept');
    }
  },
);
