import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { listHostBackups } from '../agent/storedHostBackups.ts';
import { newId } from '../common/ids.ts';
import { configSchema } from '../config/schema.ts';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { StorageError } from '../storage/errors.ts';
import type { HostManifest } from '../storage/hostManifest.ts';
import { tellUnreachable } from './backups.ts';
import type { Cli } from './cli.ts';
import { deleteEveryCopy } from './commands/hostBackups.ts';
import { removeDecided } from './commands/hostPrune.ts';
import { RecordedTerminal } from './fixture.ts';
import { findHostBackup } from './hostReference.ts';
import { type HostSession, hostStorages } from './hostSession.ts';
import { Options } from './options.ts';

const yes = new Options({ yes: true });
const text = '<network><name>inner</name></network>';
const file = 'network-inner.xml';

/** A storage that can be taken away. */
class Removable extends DirectoryStorage {
  away = false;
  /** A directory that cannot be removed. */
  stuck = '';

  override async hostBackups(): ReturnType<DirectoryStorage['hostBackups']> {
    if (this.away) throw new StorageError('STORAGE_UNREACHABLE', `${this.name} does not answer`);
    return super.hostBackups();
  }

  override async deleteHostBackup(entry: { readonly directory: string }): Promise<void> {
    if (entry.directory === this.stuck) throw new StorageError('STORAGE_DENIED', 'it may not be removed');
    await super.deleteHostBackup(entry);
  }
}

/** Storages `a` and `b`, and a command that works on them. */
class Bench {
  readonly a: Removable;
  readonly b: Removable;
  readonly recorded = new RecordedTerminal();
  readonly cli: Cli = {
    terminal: this.recorded.terminal,
    configPath: '/etc/c.yaml',
    configIsNamed: false,
    verbose: false,
  };
  readonly controller = new AbortController();
  readonly session: HostSession;

  constructor(t: Test, settings: object = {}) {
    const root = t.testdir({ a: {}, b: {} });
    this.a = new Removable({ name: 'a', path: join(root, 'a') });
    this.b = new Removable({ name: 'b', path: join(root, 'b') });
    const storages = new Map([this.a, this.b].map((storage) => [storage.name, storage]));
    this.session = {
      agent: {
        parts: { storages, configPath: '/etc/c.yaml', config: configSchema.parse(settings) },
        storage: (name) => {
          const storage = storages.get(name);
          if (storage === undefined) throw new Error(`there is no storage ${name}`);
          return storage;
        },
      },
      interruption: this.controller,
    };
  }
}

/** Backs the host up into these storages, on that day. */
async function store(
  day: string,
  storages: readonly Removable[],
  name = 'node-1',
): Promise<{ readonly id: string; readonly directories: readonly string[] }> {
  const manifest: HostManifest = {
    formatVersion: 1,
    kind: 'host',
    id: newId(),
    writer: 'test',
    host: { name, libvirt: '9.0.0', qemu: '7.2.0' },
    pointInTime: `2026-11-${day}T00:00:00.000Z`,
    items: [
      {
        kind: 'network',
        name: 'inner',
        file,
        sizeBytes: text.length,
        sha256: createHash('sha256').update(text).digest('hex'),
      },
    ],
  };
  const directories: string[] = [];
  for (const storage of storages)
    directories.push(await storage.addHostBackup(manifest, new Map([[file, text]])));
  return { id: manifest.id, directories };
}

void t.test('delete --host deletes every copy, or none where a storage does not answer', async (t) => {
  const { a, b, cli, recorded, session } = new Bench(t);
  const { id } = await store('01', [a, b]);
  b.away = true;
  await t.rejects(deleteEveryCopy(cli, session, id, yes), { code: 'STORAGE_UNREACHABLE' });
  t.equal((await a.hostBackups()).length, 1, 'nothing was deleted');
  t.notMatch(recorded.stdout, /delete/);
  b.away = false;
  t.equal(await deleteEveryCopy(cli, session, id, yes), 0);
  t.same([...(await a.hostBackups()), ...(await b.hostBackups())], []);
});

void t.test('a storage that does not answer hides no other one, and is the exit code', async (t) => {
  const { a, b, cli, recorded, session } = new Bench(t);
  const { id } = await store('01', [a]);
  b.away = true;
  const unreachable = tellUnreachable(cli);
  t.match(await findHostBackup(cli, session.agent.parts, id, unreachable.tell), [{ storage: 'a' }]);
  t.equal(unreachable.code, 6);
  t.match(recorded.stderr, /STORAGE_UNREACHABLE/);
  await t.rejects(
    findHostBackup(cli, session.agent.parts, newId(), unreachable.tell),
    { code: 'STORAGE_UNREACHABLE' },
    'it may be in the one that could not be asked',
  );
});

void t.test('HOST@latest tells of each newer backup that it passes over', async (t) => {
  const { a, b, cli, recorded, session } = new Bench(t);
  const { id } = await store('02', [a, b]);
  const changed = await store('03', [a]);
  const lost = await store('04', [b]);
  const other = await store('05', [b], 'node-2');
  const older = await store('01', [a]);
  for (const { directories } of [changed, other, older])
    await writeFile(join(directories[0] ?? '', file), 'nothing');
  await writeFile(join(lost.directories[0] ?? '', 'host.json'), '{}');
  const find = (reference: string): ReturnType<typeof findHostBackup> =>
    findHostBackup(cli, session.agent.parts, reference, tellUnreachable(cli).tell);
  t.match(await find('node-1@latest'), [{ manifest: { id } }, { manifest: { id } }]);
  t.match(recorded.stderr, /20261103T.* in a is damaged .*changed/);
  t.match(recorded.stderr, /20261104T.* in b is damaged/);
  t.notMatch(recorded.stderr, /20261101T|20261105T/, 'an older one and another host are not passed over');
  const told = recorded.stderr;
  await find(id);
  t.equal(recorded.stderr, told, 'an id passes over nothing');
});

void t.test('without a storage there is nothing to store into or to look at', async (t) => {
  const { a, cli, session } = new Bench(t);
  t.equal(hostStorages(session.agent, undefined).length, 2);
  t.same(hostStorages(session.agent, ['a']), [a]);
  const parts = { ...session.agent.parts, storages: new Map() };
  const agent = { ...session.agent, parts };
  const expected = { code: 'NO_STORAGE', hint: /storages:/ };
  t.throws(() => hostStorages(agent, undefined), expected);
  await t.rejects(listHostBackups(parts, tellUnreachable(cli).tell), expected);
  await t.rejects(removeDecided(cli, { ...session, agent }, [], yes), expected);
});

const lastOne = { hostBackups: { keep: { last: 1 } } };

/** Two days of two hosts in both storages; by the rules the first day goes. */
async function storeTwice({ a, b }: Bench): Promise<readonly string[]> {
  const first = [await store('01', [a, b]), await store('01', [a, b], 'node-2')];
  await store('02', [a, b]);
  await store('02', [a, b], 'node-2');
  return first.flatMap(({ directories }) => directories);
}

void t.test('prune --host keeps to the storages and hosts that are named', async (t) => {
  const bench = new Bench(t, lastOne);
  const { a, b, cli, session } = bench;
  await storeTwice(bench);
  // The one that was not named need not answer.
  b.away = true;
  const inA = new Options({ yes: true, storage: ['a'] });
  t.equal(await removeDecided(cli, session, ['node-2'], inA), 0);
  b.away = false;
  t.same(
    (await a.hostBackups()).map(({ host }) => host).toSorted(),
    ['node-1', 'node-1', 'node-2'],
    'one host only',
  );
  t.equal((await b.hostBackups()).length, 4);
  await t.rejects(removeDecided(cli, session, ['node-1', 'node-9'], yes), { code: 'BACKUP_NOT_FOUND' });
  const elsewhere = new Options({ yes: true, storage: ['c'] });
  await t.rejects(removeDecided(cli, session, [], elsewhere), { message: /storage c/ });
  t.equal((await b.hostBackups()).length, 4, 'nothing was removed');
});

void t.test('prune --host: what cannot be removed hides no other one', async (t) => {
  const bench = new Bench(t, lastOne);
  const { a, b, cli, recorded, session } = bench;
  const [stuck = ''] = await storeTwice(bench);
  a.stuck = stuck;
  t.equal(await removeDecided(cli, session, [], yes), 3);
  t.match(recorded.stderr, /STORAGE_DENIED.*node-1 at 2026-11-01.* from a/);
  t.match(recorded.stdout, /removed 3 of 8/);
  t.equal((await a.hostBackups()).length, 3);
  t.equal((await b.hostBackups()).length, 2);
});

void t.test('prune --host removes nothing more after a signal', async (t) => {
  const bench = new Bench(t, lastOne);
  const { a, cli, recorded, session, controller } = bench;
  await storeTwice(bench);
  controller.abort();
  t.equal(await removeDecided(cli, session, [], yes), 130);
  t.match(recorded.stdout, /removed 0 of 8/);
  t.equal((await a.hostBackups()).length, 4);
});

void t.test('HOST@T1 names the backup of that instant, and a damaged copy of it', async (t) => {
  const { a, b, cli, session } = new Bench(t);
  const { id, directories } = await store('01', [a, b]);
  const lost = await store('02', [a]);
  await store('01', [a], 'node-2');
  for (const directory of [directories[0], lost.directories[0]])
    await writeFile(join(directory ?? '', 'host.json'), '{}');
  const find = (reference: string): ReturnType<typeof findHostBackup> =>
    findHostBackup(cli, session.agent.parts, reference, tellUnreachable(cli).tell);
  for (const time of ['20261101T000000.000Z', '2026-11-01T00:00:00.000Z'])
    t.same(
      (await find(`node-1@${time}`)).map(({ directory }) => directory).toSorted(),
      directories.toSorted(),
    );
  for (const time of ['20261101T000000.001Z', 'sometime', ''])
    await t.rejects(find(`node-1@${time}`), { code: 'BACKUP_NOT_FOUND' }, time);
  t.match(await find(id), [{ storage: 'b' }], 'an id cannot name what has none');
  t.equal(await deleteEveryCopy(cli, session, 'node-1@20261102T000000.000Z', yes), 0);
  t.equal(await deleteEveryCopy(cli, session, 'node-1@20261101T000000.000Z', yes), 0);
  t.match(await a.hostBackups(), [{ host: 'node-2' }]);
  t.same(await b.hostBackups(), []);
});
