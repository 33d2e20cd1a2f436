import { chmod } from 'node:fs/promises';
import t from 'tap';
import * as z from 'zod';
import { sample, seed } from '../../test/sim/cases.ts';
import { listed } from '../../test/sim/invariants.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { HookPlace } from '../hooks/fixture.ts';
import type { JobRow } from '../jobs/job.ts';
import { processStartTicks } from '../jobs/owner.ts';
import { hookRunsSchema } from './hookFacts.ts';

t.teardown(removeSharedImages);

const recordSchema = z.object({ hooks: hookRunsSchema.default({}), warnings: z.array(z.string()) });
const recordOf = ({ record }: JobRow) => recordSchema.parse(record);

/** Hooks that write down that they run, and what they are told. */
async function hooksOf(place: HookPlace, fails: readonly string[], more: Record<string, unknown>) {
  const says = `echo "$STILLPOINT_HOOK $STILLPOINT_STATE $STILLPOINT_ERROR" >> '${place.file('ran')}'; echo "$STILLPOINT_MACHINE password=x"`;
  const hook = async (kind: string) => ({
    command: [await place.program(`${says}; exit ${fails.includes(kind) ? 7 : 0}`)],
  });
  return {
    preBackup: { ...(await hook('preBackup')), ...more },
    postBackup: await hook('postBackup'),
    onFailure: await hook('onFailure'),
  };
}

async function siteOf(
  place: HookPlace,
  mode: string,
  fails: readonly string[] = [],
  more: Record<string, unknown> = {},
) {
  return Site.create({ targets: ['vda'], policy: { mode, hooks: await hooksOf(place, fails, more) } });
}

for (const mode of ['disk', 'save', 'live'] as const)
  void t.test(`hooks run before and after a backup in mode ${mode}, while the machine runs`, async (t) => {
    await using place = await HookPlace.make();
    await using site = await siteOf(place, mode);
    const states: string[] = [];
    const { agent } = site.openAgent((moment) => {
      if (moment.includes('/begun:')) states.push(site.world.machine('m').status.state);
    });
    const row = await agent.run(await agent.createBackup({ machine: 'm' }));
    t.match(row, { state: 'finished' });
    t.same(await place.lines('ran'), ['preBackup initialized ', 'postBackup finished ']);
    t.same(states, ['running', 'running']);
    const ran = {
      state: 'succeeded',
      exitCode: 0,
      problem: null,
      output: 'm password=[secret]',
      process: null,
    };
    t.match(recordOf(row).hooks, { preBackup: ran, postBackup: ran });
    t.equal(recordOf(row).hooks.onFailure, undefined);
  });

void t.test(
  'a hook before a backup that fails keeps it from being made, and the others say so',
  async (t) => {
    await using place = await HookPlace.make();
    await using site = await siteOf(place, 'disk', ['preBackup']);
    const { agent } = site.openAgent();
    const row = await agent.run(await agent.createBackup({ machine: 'm' }));
    t.match(row, {
      state: 'failed',
      error: { code: 'HOOK_FAILED', message: /exit code 7/, retryable: true },
    });
    t.same(await place.lines('ran'), [
      'preBackup initialized ',
      'postBackup failed HOOK_FAILED',
      'onFailure failed HOOK_FAILED',
    ]);
    t.same(await listed(site), []);
  },
);

void t.test('the policy may go on without it, and no other hook fails a backup', async (t) => {
  await using place = await HookPlace.make();
  await using site = await siteOf(place, 'disk', ['preBackup', 'postBackup'], { whenItFails: 'continue' });
  const { agent } = site.openAgent();
  const row = await agent.run(await agent.createBackup({ machine: 'm' }));
  t.match(row, { state: 'finished', error: null });
  const { hooks, warnings } = recordOf(row);
  t.match(hooks, { preBackup: { state: 'failed' }, postBackup: { state: 'failed', exitCode: 7 } });
  t.match(warnings, [/although preBackup failed/]);
});

void t.test('a program that somebody else can change is not run', async (t) => {
  await using place = await HookPlace.make();
  const hook = await place.program(`echo ran >> '${place.file('ran')}'`, 0o777);
  // A new file has lost what the umask takes.
  await chmod(hook, 0o777);
  const hooks = { preBackup: { command: [hook] }, onFailure: { command: [hook] } };
  await using site = await Site.create({ targets: ['vda'], policy: { mode: 'disk', hooks } });
  const { agent } = site.openAgent();
  const row = await agent.run(await agent.createBackup({ machine: 'm' }));
  t.match(row, { state: 'failed', error: { code: 'HOOK_FAILED', message: /others than root may write/ } });
  t.same(await place.lines('ran'), []);
});

void t.test('a cancel and a deadline end a hook that hangs', async (t) => {
  for (const how of ['cancel', 'deadline'] as const) {
    await using place = await HookPlace.make();
    const hangs = await place.program(`echo $$ > '${place.file('pid')}'; sleep 1000`);
    const preBackup = { command: [hangs], deadlineSeconds: how === 'deadline' ? 1 : 1000 };
    await using site = await Site.create({
      targets: ['vda'],
      policy: { mode: 'disk', hooks: { preBackup } },
    });
    const { agent, journal } = site.openAgent();
    const job = await agent.createBackup({ machine: 'm' });
    const running = agent.run(job);
    const [pid] = await eventually(async () => {
      const lines = await place.lines('pid');
      return lines.length > 0 ? lines : undefined;
    });
    if (how === 'cancel') journal.requestCancel(job.id);
    t.match(await running, { state: how === 'cancel' ? 'cancelled' : 'failed', holdsMachine: false });
    t.equal(processStartTicks(Number(pid)), undefined);
  }
});

void t.test('what a dead agent has left of a hook is ended before anything else', async (t) => {
  await using place = await HookPlace.make();
  const hangs = await place.program(`echo $$ > '${place.file('pid')}'; sleep 1000`);
  const says = await place.program(`echo "$STILLPOINT_HOOK" >> '${place.file('ran')}'`);
  const hooks = { preBackup: { command: [hangs], deadlineSeconds: 1000 }, postBackup: { command: [says] } };
  await using site = await Site.create({ targets: ['vda'], policy: { mode: 'disk', hooks } });
  const dying = site.openAgent();
  const died = dying.life.live(async () => dying.agent.run(await dying.agent.createBackup({ machine: 'm' })));
  const [pid] = await eventually(async () => {
    const lines = await place.lines('pid');
    return lines.length > 0 ? lines : undefined;
  });
  dying.life.die();
  site.buryOwners();
  const { rows } = await site.recover();
  t.match(rows, [{ state: 'failed', error: { code: 'AGENT_DIED' }, holdsMachine: false }]);
  t.equal(processStartTicks(Number(pid)), undefined);
  t.same(await place.lines('ran'), ['postBackup']);
  await died;
});

void t.test('a parked job calls for help once, and tells its end when it has one', async (t) => {
  await using place = await HookPlace.make();
  await using site = await siteOf(place, 'save');
  let isFull = true;
  const first = site.openAgent((moment) => {
    if (isFull && moment === 'backup/before:merge') site.world.fillTarget('m', 'vda');
  });
  const row = await first.agent.run(await first.agent.createBackup({ machine: 'm' }));
  t.match(row, { holdsMachine: true });
  t.match(await first.agent.retry(row.id), { holdsMachine: true });
  isFull = false;
  site.world.freeTarget('m', 'vda');
  t.match(await first.agent.retry(row.id), { state: 'finished', holdsMachine: false });
  const ran = await place.lines('ran');
  t.same(
    ran.map((line) => line.replace(/ [A-Z_]*$/, '')),
    ['preBackup initialized', 'onFailure parked', 'postBackup finished'],
  );
});

void t.test(`whenever the agent dies, recovery runs what comes after a backup (seed ${seed})`, async (t) => {
  await using place = await HookPlace.make();
  const moments: string[] = [];
  {
    await using site = await siteOf(place, 'save');
    const { agent } = site.openAgent((moment) => void moments.push(moment));
    await agent.run(await agent.createBackup({ machine: 'm' }));
  }
  const first = moments.findIndex((moment) => moment === 'backup/before:preBackup');
  const ours = [...moments.keys()].filter((index) => /Backup/.test(moments[index] ?? '') && index >= first);
  const others = [...moments.keys()].filter((index) => index > first && !ours.includes(index));
  t.ok(ours.length >= 4, 'its own moments are known');
  for (const at of [...ours, ...sample(others, 12)]) {
    await using here = await HookPlace.make();
    await using site = await siteOf(here, 'save');
    let count = 0;
    const dying = site.openAgent((moment, { life }) => {
      if (count++ === at && moment === moments[at]) life.die();
    });
    await dying.life.live(async () => dying.agent.run(await dying.agent.createBackup({ machine: 'm' })));
    const name = `${at} ${moments[at]}`;
    if (!dying.life.isDead) {
      t.comment(`${name}: not reached this time`);
      continue;
    }
    site.buryOwners();
    const { rows } = await site.recover();
    const [row] = rows;
    const ran = await here.lines('ran');
    const hasBegun = row !== undefined && recordOf(row).hooks.preBackup !== undefined;
    const ends = ran.filter((line) => line.startsWith(`postBackup ${row?.state}`));
    if (row?.holdsMachine !== false) t.fail(`${name}: ${JSON.stringify(row?.error)}`);
    if (hasBegun && ends.length === 0) t.fail(`${name}: ${ran.join(', ')}`);
    if (ends.length > 2) t.fail(`${name}: ${ran.join(', ')}`);
  }
});
