import t from 'tap';
import { inTurn } from '../../test/sim/cases.ts';
import { brokenPromises } from '../../test/sim/invariants.ts';
import { type LivingAgent, removeSharedImages, Site } from '../../test/sim/site.ts';
import type { JobRow } from '../jobs/job.ts';

/* The service is stopped at a moment of a backup, and the process ends as soon as the job may be left. */

t.teardown(removeSharedImages);

type Mode = 'save' | 'live' | 'disk';

/** Between two of the engine's points many calls and files look the same: each so many is enough. */
const everyOther = 6;

interface Stopped {
  readonly moments: readonly string[];
  /** How the job ended; null where the process has left it. */
  readonly row: JobRow | null;
}

/** A backup, with a stop at its moment number `index`; `null`: none. */
async function backUp(site: Site, mode: Mode, index: number | null): Promise<Stopped> {
  const moments: string[] = [];
  const listener = async (moment: string, { agent, life }: LivingAgent): Promise<void> => {
    const { engine } = agent.parts;
    if (life.isDead) return;
    if (moments.push(moment) - 1 === index) engine.stop();
    if (engine.stopSignal.aborted && engine.atWork.length > 0 && engine.canBeLeft) life.die();
  };
  const { agent, life } = site.openAgent(listener);
  const row = await life.live(async () => agent.run(await agent.createBackup({ machine: 'm', mode })));
  return { moments, row: row ?? null };
}

for (const mode of ['save', 'live', 'disk'] as const) {
  void t.test(`mode ${mode}: a stop at any moment leaves no machine waiting and no job parked`, async (t) => {
    let moments: readonly string[] = [];
    {
      await using site = await Site.create({ targets: ['vda'] });
      ({ moments } = await backUp(site, mode, null));
    }
    const chosen = [...moments.keys()].filter(
      (index) => moments[index]?.startsWith('backup/') || index % everyOther === 0,
    );
    const ends = new Map<string, number>();
    await inTurn(chosen, async (index) => {
      const name = `${index} ${moments[index]}`;
      await using site = await Site.create({ targets: ['vda'], autostart: true });
      const { persistent } = site.world.machine('m');
      const { row } = await backUp(site, mode, index);
      const left = row === null;
      if (left && site.world.machine('m').status.state !== 'running')
        t.fail(`${name}: the machine stands still until somebody comes`);
      site.buryOwners();
      const { rows } = await site.recover();
      const ended = left ? rows[0] : row;
      const end = `${left ? 'left, then ' : ''}${ended?.state} ${ended?.error?.code ?? ''}`.trim();
      ends.set(end, (ends.get(end) ?? 0) + 1);
      if (ended?.error !== null && ended?.error.code !== 'AGENT_STOPPED' && !left)
        t.fail(`${name}: ${ended?.error.code}`);
      if (ended?.error?.retryable === false) t.fail(`${name}: it would not be tried again`);
      const promised = {
        machine: 'running',
        memoryKept: true,
        autostart: true,
        definition: persistent ?? '',
      } as const;
      for (const problem of await brokenPromises(site, promised)) t.fail(`${name}: ${problem}`);
    });
    t.comment([...ends].map(([end, count]) => `${end}: ${count}`).join(', '));
    t.ok(ends.has('failed AGENT_STOPPED'), 'what can be done again is given up');
    t.ok(ends.has('finished'), 'what is nearly done is finished');
    if (mode !== 'disk')
      t.ok(ends.has('left, then finished'), 'what the next process goes on with is left, and is not lost');
  });
}
