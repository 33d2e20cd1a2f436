import t from 'tap';
import type { MachineState } from '../agent/hypervisor/hypervisor.ts';
import { configSchema } from '../config/schema.ts';
import { type Choice, chooseMachines } from './machineChoice.ts';
import { runLimited } from './parallel.ts';

const states: Readonly<Record<string, MachineState>> = {
  'web-2': 'running',
  'web-1': 'running',
  'web-off': 'shut-off',
  db: 'running',
  'scratch-1': 'running',
  'odd*name': 'running',
};
const machines = Object.entries(states).map(([name, state]) => ({
  uuid: name,
  name,
  status: { state, reason: 'unknown' },
  persistent: true,
  autostart: false,
  hasManagedSave: false,
}));
const config = configSchema.parse({
  storages: { local: { kind: 'directory', path: '/backups' } },
  machines: [{ match: 'scratch-*', exclude: true }],
  templates: [
    { name: 'debian', image: '/images/debian.qcow2' },
    { name: 'scratch-t', image: 'pool/scratch' },
  ],
});
const choose = (choice: Partial<Choice>): readonly string[] =>
  chooseMachines(
    machines,
    { config, configPath: '/c.yaml' },
    { typed: [], all: false, exclude: [], ...choice },
  );

void t.test('names, patterns and --all choose each machine once', async (t) => {
  t.same(choose({ typed: ['db', 'web-2', 'db'] }), ['db', 'web-2'], 'in the order typed');
  t.same(
    choose({ typed: ['web-*'] }),
    ['web-1', 'web-2', 'web-off'],
    'a pattern means machines that are off too',
  );
  t.same(choose({ typed: ['web-2', 'web-?'] }), ['web-2', 'web-1']);
  t.same(
    choose({ all: true }),
    ['db', 'debian', 'odd*name', 'web-1', 'web-2'],
    '--all means what runs, and templates',
  );
  t.same(choose({ typed: ['d*'] }), ['db', 'debian']);
  t.same(choose({ typed: ['odd*name'] }), ['odd*name'], 'a name is no pattern');
  t.same(
    choose({ typed: ['scratch-1'] }),
    ['scratch-1'],
    'what is named by itself is for the agent to refuse',
  );
  t.same(choose({ typed: ['no-such-machine'] }), ['no-such-machine']);
});

void t.test('--exclude leaves out, however a machine was chosen', async (t) => {
  t.same(choose({ all: true, exclude: ['web-*', 'odd*', 'deb*'] }), ['db']);
  t.same(choose({ typed: ['db', 'web-1'], exclude: ['db'] }), ['web-1']);
});

void t.test('what means no machine is refused', async (t) => {
  for (const choice of [
    {},
    { all: true, typed: ['db'] },
    { typed: ['nothing-*'] },
    { typed: ['scratch-*'] },
    { typed: ['db'], exclude: ['*'] },
    { all: true, exclude: ['*'] },
  ])
    t.throws(() => choose(choice), { code: 'USAGE' }, JSON.stringify(choice));
});

void t.test('no more goes on at a time than the host and each storage allow', async (t) => {
  const items = ['a1', 'a2', 'a3', 'b1', 'b2', 'ab'];
  const running = new Set<string>();
  const begun: string[] = [];
  let most = 0;
  let mostOfA = 0;
  const uses = (item: string): readonly string[] => item.replace(/\d/, '').split('');
  await runLimited(
    items,
    { total: 3, uses, limitOf: (used) => (used === 'a' ? 1 : undefined) },
    async (item) => {
      running.add(item);
      begun.push(item);
      most = Math.max(most, running.size);
      mostOfA = Math.max(mostOfA, [...running].filter((one) => one.includes('a')).length);
      await new Promise((resolve) => setImmediate(resolve));
      running.delete(item);
    },
  );
  t.same(begun.toSorted(), items.toSorted());
  t.same(begun.slice(0, 3), ['a1', 'b1', 'b2'], 'what has to wait lets others pass');
  t.equal(most, 3);
  t.equal(mostOfA, 1);
});
