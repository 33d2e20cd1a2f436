import t from 'tap';
import { ScheduledSite } from '../../test/sim/scheduledSite.ts';
import { removeSharedImages } from '../../test/sim/site.ts';
import { ScheduleReports } from './report.ts';

t.teardown(removeSharedImages);

/** Of the moments inside a job, which the crash matrices of backups go through, each so many is enough here. */
const everyOther = 9;

/** One slot, from the first start of the service until well after it, with retries where it is needed. */
async function slot(host: ScheduledSite, fate: (moment: string) => boolean): Promise<void> {
  await host.start({ fate });
  while (host.nowMs < Date.parse('2026-11-22T03:00Z')) {
    if (host.isDead) await host.start();
    await host.until('2026-11-22T03:00');
  }
}

function openHost(): Promise<ScheduledSite> {
  return ScheduledSite.create({ schedule: '0 2 * * *' }, '2026-11-22T01:59');
}

/** All moments of an undisturbed slot, in their order. */
async function momentsOf(): Promise<readonly string[]> {
  await using host = await openHost();
  const moments: string[] = [];
  await slot(host, (moment) => {
    moments.push(moment);
    return false;
  });
  return moments;
}

void t.test('a service that is killed at any moment runs each slot once, and loses none', async (t) => {
  const moments = await momentsOf();
  const isOurs = (moment: string): boolean => /Schedules|Service|journal\/.*:(create|end)/.test(moment);
  const chosen = [...moments.keys()].filter(
    (index) => isOurs(moments[index] ?? '') || index % everyOther === 0,
  );
  t.ok(chosen.filter((index) => isOurs(moments[index] ?? '')).length >= 10, 'the writes of a slot are known');
  for (const index of chosen) {
    const name = `${index} ${moments[index]}`;
    await using host = await openHost();
    let count = 0;
    let died = false;
    await slot(host, () => {
      died ||= count === index;
      return count++ === index;
    });
    const { journal } = host.agent.parts;
    const finished = journal.list().filter(({ state }) => state === 'finished');
    if (!died) t.fail(`${name}: not reached`);
    if (finished.length !== 1) t.fail(`${name}: ${finished.length} backups of one slot`);
    if (journal.holding().length > 0) t.fail(`${name}: a job was left`);
    const backups = await host.agent.backups.list(undefined, () => undefined);
    if (backups.filter(({ state }) => state === 'Active').length !== 1) t.fail(`${name}: no backup, or two`);
    const report = new ScheduleReports(host.agent).of({ uuid: host.site.uuid, name: 'm' }, host.nowMs, null);
    if (report?.lastWord?.kind !== 'succeeded' || report.lastWord.jobId !== finished[0]?.id)
      t.fail(`${name}: the last word is ${JSON.stringify(report?.lastWord)}`);
    // Until its job is there nothing of a run is remembered: it is no retry.
    if (index <= moments.indexOf('journal/before:create') && report?.run?.attempt !== 1)
      t.fail(`${name}: attempt ${report?.run?.attempt}`);
    if (report?.nextMs !== Date.parse('2026-11-23T02:00Z')) t.fail(`${name}: the next slot is not the next`);
  }
  t.comment(`${chosen.length} of ${moments.length} moments`);
});
