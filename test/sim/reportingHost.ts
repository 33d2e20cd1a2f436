/**
 * A host as a process of its own: notes numbered reports, with states and progress between them, and sends them.
 *   reportingHost.ts DIRECTORY ADDRESS COUNT MAX_BYTES [tls]
 * With `tls` it shows the certificate of the identity in DIRECTORY/identity, as the service does.
 * It may be killed at any moment, and goes on where it was. Prints `done` when all were taken by the controller.
 */
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Backoff } from '../../agent/report/backoff.ts';
import { IdentityStore } from '../../agent/identity/identityStore.ts';
import { channelOf, joinedChannelOf } from '../../agent/report/channel.ts';
import { hostIdIn } from '../../agent/report/hostId.ts';
import { OutboxKeeper } from '../../agent/report/outboxKeeper.ts';
import { Sender } from '../../agent/report/sender.ts';
import { createLogger } from '../../common/log.ts';
import { eventually } from '../lab/eventually.ts';
import { alert, job, machine } from './reports.ts';

const [directory = '', address = '', count = '', maxBytes = '', tls] = process.argv.slice(2);
const identities = new IdentityStore(join(directory, 'identity'));
const joined = tls === undefined ? null : await identities.current();
const log = createLogger({ level: 'warn' });
const stop = new AbortController();
let sender: Sender | undefined;
const keeper = new OutboxKeeper(
  join(directory, 'outbox.sqlite'),
  { maxBytes: Number(maxBytes) },
  { log, onNoted: () => sender?.wake() },
);
sender = new Sender({
  keeper,
  channel: joined === null ? channelOf(address) : joinedChannelOf(address, identities),
  host: { id: joined?.hostId ?? (await hostIdIn(directory)), name: 'sim', version: '0' },
  log,
  backoff: new Backoff({ firstMs: 20, maxMs: 200, random: () => Math.random() }),
});
const sending = sender.run(stop.signal);

for (let next = Number(keeper.outbox.cursor('next') ?? 1); next <= Number(count); next++) {
  const reports = [
    machine(`m${next % 3}`, `state ${next}`),
    job(`j${next % 5}`, 'merging'),
    alert(String(next), 'x'.repeat((next * 37) % 400)),
  ];
  keeper.note({ reports, cursor: { name: 'next', value: next + 1 } });
  await nextTurn();
}
await eventually(() => keeper.outbox.backlog.reports === 0, { timeoutMs: 120_000 });
stop.abort();
await sending;
process.stdout.write('done\n');
