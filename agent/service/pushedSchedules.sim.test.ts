import { writeFile } from 'node:fs/promises';
import t from 'tap';
import { createLogger } from '../../common/log.ts';
import { nothingPushed } from '../../config/config.ts';
import { withPushed } from '../../config/hostConfig.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { PushedPolicies } from '../api/pushedPolicies.ts';

/* Schedules that were pushed, and a controller that is away afterwards. */

t.teardown(removeSharedImages);

const rules = { machines: [{ match: 'm', policy: 'nightly' }] };

/** A schedule that is pushed for machine `m`; nothing else of the host is said by it. */
function nightly(cron: string): string {
  const schedule = { cron };
  return JSON.stringify({ policies: { nightly: { mode: 'disk', timeZone: 'UTC', schedule } }, ...rules });
}

/** A host whose service starts, with what is kept of pushes, and the way by which they come. */
async function start(host: ScheduledSite): Promise<PushedPolicies> {
  await host.start();
  const local = { config: host.site.config(), files: [], pushed: nothingPushed };
  const file = new PushedFile(local.config.agent.stateDir);
  const pushed = new PushedPolicies({ agent: host.agent, log: createLogger({ level: 'silent' }) });
  await pushed.open();
  pushed.follow = async () => {
    host.apply(withPushed(local, await file.read()).config);
    await host.refresh();
  };
  await pushed.follow();
  return pushed;
}

async function push(pushed: PushedPolicies, revision: number, document: string): Promise<void> {
  await pushed.set({ revision, document, validateOnly: false }, { kind: 'controller', name: 'c1' });
}

void t.test(
  'a pushed schedule is acted on at once, and goes on over restarts without a controller',
  async (t) => {
    await using host = await ScheduledSite.create({}, '2026-11-22T00:30');
    const pushed = await start(host);
    t.notOk(host.scheduler.isNeeded, 'its own files have no schedule');
    await push(pushed, 1, nightly('0 2 * * *'));
    await host.until('2026-11-22T03:00');
    t.same(host.begunSlots(), ['2026-11-22T02:00']);
    await start(host);
    await host.until('2026-11-23T03:00');
    await start(host);
    await host.until('2026-11-24T03:00');
    t.same(host.begunSlots(), ['2026-11-22T02:00', '2026-11-23T02:00', '2026-11-24T02:00']);
  },
);

void t.test('another push replaces the schedule, and a removal ends it', async (t) => {
  await using host = await ScheduledSite.create({}, '2026-11-22T00:30');
  const pushed = await start(host);
  await push(pushed, 1, nightly('0 2 * * *'));
  await push(pushed, 2, nightly('0 4 * * *'));
  await host.until('2026-11-22T05:00');
  t.same(host.begunSlots(), ['2026-11-22T04:00']);
  await pushed.remove(3, { kind: 'controller', name: 'c1' });
  await host.until('2026-11-24T05:00');
  t.equal(host.begunSlots().length, 1);
  t.notOk(host.scheduler.isNeeded);
});

void t.test('what was pushed and is damaged at the start leaves the schedules of the files', async (t) => {
  await using host = await ScheduledSite.create({ schedule: '0 6 * * *' }, '2026-11-22T00:30');
  const pushed = await start(host);
  await push(pushed, 1, nightly('0 2 * * *'));
  await host.until('2026-11-22T07:00');
  t.same(host.begunSlots(), ['2026-11-22T02:00'], 'the pushed one is for this machine');
  await writeFile(new PushedFile(host.site.config().agent.stateDir).path, 'damaged');
  await start(host);
  await host.until('2026-11-23T07:00');
  t.same(host.begunSlots(), ['2026-11-22T02:00', '2026-11-23T06:00'], 'its default is there for it');
});
