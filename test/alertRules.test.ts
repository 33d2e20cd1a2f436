import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';

const repository = join(import.meta.dirname, '..');
/** `npm run setup` puts it there. */
const promtool = join(repository, '.cache/promtool/promtool');
const timeout = 60_000;

void t.test('Prometheus takes the rules of the example', async (t) => {
  const rules = join(repository, 'docs/examples/stillpoint-alerts.yaml');
  const { exitCode, all } = await execa(promtool, ['check', 'rules', rules], {
    all: true,
    reject: false,
    timeout,
  });
  t.equal(exitCode, 0, all);
  t.match(all, /SUCCESS: \d+ rules found/);
});

void t.test('they raise an alert when they should, and not before', async (t) => {
  const tests = join(repository, 'test/alertRules.yaml');
  const { exitCode, all } = await execa(promtool, ['test', 'rules', tests], {
    all: true,
    reject: false,
    timeout,
  });
  t.equal(exitCode, 0, all);
  t.match(all, /SUCCESS/);
});
