import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { createLogger } from '../../common/log.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { Pulse } from './pulse.ts';
import { actOnSchedules } from './schedules.ts';

t.teardown(removeSharedImages);

/** Looks at the machines take as long as that of a host with thousands of them. */
const lookMs = 40;
/** Long enough for very many of them, one after the other. */
const watchedMs = 1_500;

function spin(ms: number): void {
  for (const endMs = performance.now() + ms; performance.now() < endMs; );
}

void t.test('events that never end do not have the machines of the host looked at without end', async (t) => {
  await using site = await Site.create({ policy: { schedule: '0 3 29 2 *' } });
  let looks = 0;
  let touches: Promise<void> = Promise.resolve();
  const { agent } = site.openAgent(async (moment) => {
    if (moment !== 'libvirt/after:machines') return;
    looks += 1;
    spin(lookMs);
    // Somebody changes a machine meanwhile: there is something to look at again.
    touches = touches.then(() => touch(site));
    await touches;
  });
  const stop = new AbortController();
  const log = createLogger({ level: 'silent' });
  const pulse = new Pulse();
  const acting = actOnSchedules(agent, { log, signal: stop.signal, pulse });
  await eventually(() => looks > 0);
  await sleep(watchedMs);
  const seen = looks;
  agent.follow({ config: site.config({ schedule: '0 4 29 2 *' }), storages: agent.parts.storages });
  await eventually(() => looks > seen);
  t.ok(seen <= 2, `${seen} looks`);
  stop.abort();
  await acting;
});

/** An event of a machine. */
async function touch({ world, uuid }: Site): Promise<void> {
  const connection = world.connect();
  await connection.define(await connection.definition(uuid, 'persistent'));
  await connection[Symbol.asyncDispose]();
}
