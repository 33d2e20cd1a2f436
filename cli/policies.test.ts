import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { PushedFile } from '../config/pushedFile.ts';
import { policies } from './commands/policies.ts';
import { RecordedTerminal } from './fixture.ts';
import { Options } from './options.ts';

/** A host with a file, a drop-in and pushed policies. */
async function host(t: Test, { more = '', json = false } = {}) {
  const directory = t.testdir({
    state: {},
    'c.d': { 'db.yaml': 'policies:\n  db: { schedule: { every: 4h } }\n' },
  });
  const configPath = join(directory, 'c.yaml');
  await writeFile(
    configPath,
    `agent: { stateDir: ${directory}/state }
storages: { local: { kind: directory, path: /l } }
policies:
  default: { schedule: "0 2 * * *" }
machines:
  - { match: "db-*", policy: db }
${more}`,
  );
  const recorded = new RecordedTerminal({ json });
  const cli = { terminal: recorded.terminal, configPath, configIsNamed: true, verbose: false };
  const file = new PushedFile(join(directory, 'state'));
  const push = (document: object | null): Promise<void> =>
    file.write({
      revision: 12,
      document: document === null ? null : JSON.stringify(document),
      setBy: 'controller:c1',
      setAt: '2026-11-22T10:00:00.000Z',
    });
  return { recorded, configPath, directory, file, push, type: () => policies(cli, [], new Options({})) };
}

const gold = {
  policies: { gold: { schedule: '0 3 * * *', storages: ['local'] } },
  machines: [
    { match: 'web-*', policy: 'gold' },
    { match: 'old-*', exclude: true },
  ],
};

void t.test(
  'each policy and rule says where it comes from, in the order in which rules are asked',
  async (t) => {
    const { recorded, configPath, directory, push, type } = await host(t, { json: true });
    await push(gold);
    t.equal(await type(), 0);
    const from = { revision: 12, setBy: 'controller:c1', setAt: '2026-11-22T10:00:00.000Z' };
    t.match(JSON.parse(recorded.stdout), {
      pushed: { accepted: true, revision: 12, setBy: 'controller:c1', removed: false, problems: [] },
      policies: [
        { name: 'default', from: { file: configPath, line: 4 } },
        { name: 'db', from: { file: join(directory, 'c.d', 'db.yaml'), line: 2 } },
        { name: 'gold@controller', from, policy: { storages: ['local'] } },
      ],
      machines: [
        { match: 'db-*', policy: 'db', from: { file: configPath, line: 6 } },
        { match: 'web-*', policy: 'gold@controller', from },
        { match: 'old-*', exclude: true, from },
      ],
    });
  },
);

void t.test('people see the same', async (t) => {
  const { recorded, push, type } = await host(t);
  t.equal(await type(), 0);
  t.match(recorded.stdout, /pushed: .*nothing/);
  await push(gold);
  recorded.stdout = '';
  t.equal(await type(), 0);
  t.match(recorded.stdout, /pushed: .*by controller:c1, revision 12/);
  t.match(recorded.stdout, /gold@controller +0 3 \* \* \* +local +controller:c1, revision 12/);
  t.match(recorded.stdout, /old-\* +.*excluded/);
  t.match(recorded.stdout, /all others +default/);
  await push(null);
  recorded.stdout = '';
  t.equal(await type(), 0);
  t.match(recorded.stdout, /pushed: .*taken away by controller:c1, revision 12/);
  t.notMatch(recorded.stdout, /gold/);
});

void t.test('what cannot be used is told, and the exit code says so', async (t) => {
  const { recorded, push, file, type } = await host(t);
  await push({ policies: { gold: { storages: ['vault'] } } });
  t.equal(await type(), 3);
  t.match(recorded.stderr, /policies\.gold\.storages\.0: no storage is called vault/);
  await writeFile(file.path, 'damaged');
  t.equal(await type(), 3);
  t.match(recorded.stderr, /it is damaged/);
  t.match(recorded.stdout, /default@stand-in/);
});

void t.test('a host that takes nothing from a controller shows it', async (t) => {
  const { recorded, push, type } = await host(t, { more: 'controller: { acceptPolicies: false }\n' });
  await push(gold);
  t.equal(await type(), 0);
  t.match(recorded.stdout, /not accepted here/);
  t.notMatch(recorded.stdout, /gold/);
});
