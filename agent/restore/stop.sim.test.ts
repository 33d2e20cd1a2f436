import t from 'tap';
import { inTurn, sample, seed } from '../../test/sim/cases.ts';
import { endure, Fate, type Meanwhile, type Outcome } from '../../test/sim/crashes.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';

/* The service is stopped at a moment of an instant restore, and the process ends as soon as the job may be left. */

t.teardown(removeSharedImages);

async function backedUp(): Promise<Site> {
  const site = await Site.create({ autostart: true, targets: ['vda', 'vdb'] });
  const { problems } = await endure(site, 'backup', []);
  if (problems.length > 0) throw new Error(`the backup before the restore: ${problems.join('; ')}`);
  for (const _ of ['after', 'T1']) await site.write();
  return site;
}

interface Stopped extends Outcome {
  /** Those of the first process, in their order. */
  readonly moments: readonly string[];
  readonly left: boolean;
}

/** An instant restore, with a stop at its moment number `index`; `null`: none. */
async function restore(site: Site, index: number | null): Promise<Stopped> {
  const moments: string[] = [];
  let left = false;
  const meanwhile: Meanwhile = (moment, { agent, life }) => {
    if (left) return;
    const { engine } = agent.parts;
    if (moments.push(moment) - 1 === index) engine.stop();
    left = engine.stopSignal.aborted && engine.atWork.length > 0 && engine.canBeLeft;
    if (left) life.die();
  };
  return { ...(await endure(site, 'instant', [], new Fate(site, undefined, meanwhile))), moments, left };
}

void t.test(`a stop at any moment of an instant restore loses nothing (seed ${seed})`, async (t) => {
  let moments: readonly string[] = [];
  {
    await using site = await backedUp();
    ({ moments } = await restore(site, null));
  }
  const [pull, pulled] = [moments.indexOf('restore/before:pull'), moments.indexOf('restore/after:pull')];
  const isOfPull = (index: number): boolean => index >= pull && index <= pulled;
  const all = [...moments.keys()];
  const chosen = [
    ...sample(all.filter(isOfPull), 10),
    ...sample(
      all.filter((index) => !isOfPull(index)),
      8,
    ),
  ];
  t.comment(`${chosen.length} of ${moments.length} moments`);
  const ends = new Map<string, number>();
  await inTurn(chosen, async (index) => {
    await using site = await backedUp();
    const { problems, row, left } = await restore(site, index);
    const end = `${left ? 'left, then ' : ''}${row?.state} ${row?.error?.code ?? ''}`.trim();
    ends.set(end, (ends.get(end) ?? 0) + 1);
    t.same(problems, [], `${index} ${moments[index]} → ${end}`);
    if (isOfPull(index) && end !== 'left, then finished') t.fail(`${index} ${moments[index]} → ${end}`);
  });
  t.comment([...ends].map(([end, count]) => `${end}: ${count}`).join(', '));
});
