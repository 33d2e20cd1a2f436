import { randomInt } from 'node:crypto';
import t from 'tap';
import { historyOf } from './hostsHistory.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
const rounds = Number(process.env['STILLPOINT_TEST_ROUNDS'] ?? 8);
t.comment(`seed ${seed}, ${rounds} histories; STILLPOINT_TEST_SEED repeats them`);

void t.test('whatever several hosts do at once, what is listed restores, and space comes back', async (t) => {
  const total = { committed: 0, writeOnly: 0, fenced: 0, collections: 0, packsDeleted: 0 };
  for (let round = 0; round < rounds; round++) {
    const { violations, ...counts } = await historyOf(seed + round).run();
    if (violations.length > 0) t.fail(`seed ${seed + round}: ${violations.join('; ')}`);
    for (const key of ['committed', 'writeOnly', 'fenced', 'collections', 'packsDeleted'] as const)
      total[key] += counts[key];
  }
  t.comment(JSON.stringify(total));
  t.ok(total.writeOnly > 0, 'hosts that only write are among them');
  t.ok(total.committed > rounds && total.collections > rounds && total.packsDeleted > rounds);
});
