import { truncate, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { configSchema } from '../config/schema.ts';
import { DirectoryStorage } from '../storage/directory/directoryStorage.ts';
import { makeSample, storeSample } from '../storage/directory/fixture.ts';
import { StorageError } from '../storage/errors.ts';
import type { BackupEntry, MachineIdentity, Storage } from '../storage/storage.ts';
import { removeSharedImages, Site } from '../test/sim/site.ts';
import { HypervisorError } from './hypervisor/errors.ts';
import type { MachineSummary } from './hypervisor/hypervisor.ts';
import { JobError } from './jobs/errors.ts';
import { type PruneListener, Pruner, type PruneRequest, type Pruning } from './pruning.ts';

t.teardown(removeSharedImages);

const web: MachineIdentity = { name: 'web-1', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01' };
const scratch: MachineIdentity = { name: 'scratch-1', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a02' };
const gone: MachineIdentity = { name: 'gone', uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a03' };
const firstMs = new Date('2026-01-05T12:00:00.000Z').getTime();
const dayMs = 24 * 3_600_000;
const never = new AbortController().signal;
const aside = (): void => undefined;

/** What became of a plan, in the order in which it happened. */
class Heard implements PruneListener {
  readonly lines: string[] = [];
  onRemoved: () => Promise<void> | void = aside;

  removed(_: Pruning, entry: BackupEntry): void {
    this.lines.push(`removed ${nameOf(entry)}`);
  }

  keptAfterAll(_: Pruning, { entry, reasons }: { entry: BackupEntry; reasons: readonly string[] }): void {
    this.lines.push(`kept ${nameOf(entry)}: ${reasons.join(', ')}`);
  }

  failed({ machine, storage }: Pruning, entry: BackupEntry | null, error: unknown): void {
    const code = error instanceof StorageError || error instanceof JobError ? error.code : String(error);
    this.lines.push(`failed ${entry === null ? `${machine.name} in ${storage}` : nameOf(entry)}: ${code}`);
  }
}

/** `web-1/local/3` for its backup of the third day. */
function nameOf({ machine, storage, pointInTime }: BackupEntry): string {
  return `${machine.name}/${storage}/${(new Date(pointInTime).getTime() - firstMs) / dayMs}`;
}

interface Stage {
  readonly storages: ReadonlyMap<string, Storage>;
  /** Backups of these days, oldest first. */
  add(machine: MachineIdentity, storage: string, days: readonly number[]): Promise<readonly BackupEntry[]>;
  plan(request?: Partial<PruneRequest>): Promise<readonly Pruning[]>;
  run(plan: readonly Pruning[], signal?: AbortSignal): Promise<readonly string[]>;
  left(): Promise<readonly string[]>;
  readonly unreachable: string[];
}

/** Two storages and a host that has `web-1` and `scratch-1`. */
function stageFor(
  test: Test,
  options: {
    readonly keep?: unknown;
    /** What of the policy is said about copies. */
    readonly replicate?: unknown;
    readonly deleteBackup?: (entry: BackupEntry, stage: Stage) => Promise<void>;
    readonly around?: (storage: Storage) => Storage;
  } = {},
): Stage {
  const work = test.testdir({ local: {}, vault: {} });
  const real = new Map(
    ['local', 'vault'].map((name) => [name, new DirectoryStorage({ name, path: join(work, name) })]),
  );
  const storages = new Map<string, Storage>(
    [...real].map(([name, storage]) => [name, options.around?.(storage) ?? storage]),
  );
  const summaries = [web, scratch].map(
    (machine): MachineSummary => ({
      ...machine,
      status: { state: 'running', reason: 'booted' },
      persistent: true,
      autostart: false,
      hasManagedSave: false,
    }),
  );
  const keep = options.keep === undefined ? { last: 2 } : options.keep;
  const config = configSchema.parse({
    storages: { local: { kind: 'directory', path: '/a' }, vault: { kind: 'directory', path: '/b' } },
    policies: { default: { keep, replicate: options.replicate ?? [], timeZone: 'UTC' } },
    machines: [{ match: 'scratch-*', exclude: true }],
  });
  const unreachable: string[] = [];
  const pruner = new Pruner(
    {
      config,
      configPath: '/etc/stillpoint/config.yaml',
      storages,
      hypervisor: {
        machines: () => Promise.resolve(summaries),
        findMachine: (name) => {
          const found = summaries.find((summary) => summary.name === name);
          if (found !== undefined) return Promise.resolve(found);
          return Promise.reject(new HypervisorError('MACHINE_NOT_FOUND', `there is no machine ${name}`));
        },
      },
    },
    async (entry) => {
      await options.deleteBackup?.(entry, stage);
      await storages.get(entry.storage)?.delete(entry);
    },
  );
  const stage: Stage = {
    storages,
    unreachable,
    add: async (machine, name, days) => {
      const storage = real.get(name);
      if (storage === undefined) throw new Error(`no storage ${name}`);
      const entries: BackupEntry[] = [];
      for (const day of days) {
        const time = new Date(firstMs + day * dayMs);
        entries.push(await storeSample(storage, await makeSample(work, { machine, time })));
      }
      return entries;
    },
    plan: (request) => pruner.plan({ machines: [], ...request }, (storage) => unreachable.push(storage)),
    run: async (plan, signal = never) => {
      const heard = new Heard();
      await pruner.run(plan, { signal, listener: heard });
      return heard.lines;
    },
    left: async () => {
      const lists = await Promise.all([...real.values()].map((storage) => storage.list()));
      return lists.flat().map(nameOf);
    },
  };
  return stage;
}

/** A storage of which one thing is replaced. */
function changed(storage: Storage, changes: Partial<Storage>): Storage {
  return new Proxy(storage, {
    get: (object, key) => {
      const member: unknown = Reflect.get(changes, key) ?? Reflect.get(object, key, object);
      return typeof member === 'function' ? member.bind(object) : member;
    },
  });
}

const shown = (plan: readonly Pruning[]): readonly string[] =>
  plan.flatMap(({ decisions }) =>
    decisions.map(({ entry, keep, reasons }) => `${nameOf(entry)} ${keep ? reasons.join(', ') : 'goes'}`),
  );

void t.test('each storage keeps what the rules say, on its own, and a plan changes nothing', async (t) => {
  const stage = stageFor(t);
  await stage.add(web, 'local', [0, 1, 2, 3]);
  await stage.add(web, 'vault', [0, 3]);
  const plan = await stage.plan();
  t.same(shown(plan), [
    'web-1/local/0 goes',
    'web-1/local/1 goes',
    'web-1/local/2 last 2 (2nd)',
    'web-1/local/3 last 2 (1st), the last good one',
    'web-1/vault/0 last 2 (2nd)',
    'web-1/vault/3 last 2 (1st), the last good one',
  ]);
  t.equal((await stage.left()).length, 6);
  t.same(await stage.run(plan), ['removed web-1/local/0', 'removed web-1/local/1'], 'oldest first');
  t.same(await stage.left(), ['web-1/local/2', 'web-1/local/3', 'web-1/vault/0', 'web-1/vault/3']);
  t.same(await stage.run(await stage.plan()), [], 'again: nothing');
  const only = await stage.plan({ storages: ['vault'] });
  t.same([...new Set(only.map(({ storage }) => storage))], ['vault']);
});

void t.test('without rules nothing goes', async (t) => {
  const stage = stageFor(t, { keep: null });
  await stage.add(web, 'local', [0, 1]);
  const plan = await stage.plan();
  t.match(plan, [{ keep: null, policy: 'default', decisions: [{ keep: true }, { keep: true }] }]);
  t.same(await stage.run(plan), []);
});

void t.test('excluded machines and those of other hosts are pruned only when they are named', async (t) => {
  const stage = stageFor(t, { keep: { last: 1 } });
  for (const machine of [web, scratch, gone]) await stage.add(machine, 'local', [0, 1]);
  t.match(
    (await stage.plan()).map(({ machine, skipped }) => [machine.name, skipped]),
    [
      ['gone', /not on this host/],
      ['scratch-1', /excluded by the rule "scratch-\*"/],
      ['web-1', null],
    ],
  );
  t.match(shown(await stage.plan())[0], /^gone\/local\/0 the machine is not on this host/);
  t.same(await stage.run(await stage.plan()), ['removed web-1/local/0']);
  const named = await stage.plan({ machines: ['gone', scratch.uuid] });
  t.same(await stage.run(named), ['removed gone/local/0', 'removed scratch-1/local/0']);
  await t.rejects(stage.plan({ machines: ['nobody'] }), { code: 'MACHINE_NOT_FOUND' });
  t.same(await stage.plan({ machines: ['scratch-1'], storages: ['vault'] }), [], 'no backups, but a machine');
});

void t.test('a name means the machine that has it now, not an earlier one of that name', async (t) => {
  const stage = stageFor(t, { keep: { last: 1 } });
  const earlier = { name: web.name, uuid: gone.uuid };
  await stage.add(earlier, 'local', [0, 1]);
  await stage.add(web, 'local', [2, 3]);
  t.same(await stage.run(await stage.plan({ machines: ['web-1'] })), ['removed web-1/local/2']);
  t.same(await stage.run(await stage.plan()), [], 'each has its own last good one');
  t.same(await stage.run(await stage.plan({ machines: [gone.uuid] })), ['removed web-1/local/0']);
});

void t.test('what is protected, damaged or being restored stays, and holds up no other', async (t) => {
  const stage = stageFor(t, {
    keep: { last: 1 },
    deleteBackup: async (entry) => {
      if (nameOf(entry).endsWith('/2')) throw new JobError('MACHINE_BUSY', 'a restore reads it');
    },
  });
  const [first, second] = await stage.add(web, 'local', [0, 1, 2, 3, 4, 5]);
  if (first === undefined || second === undefined) throw new Error('nothing was stored');
  await stage.storages.get('local')?.setProtected(first, { reason: null });
  await truncate(join(second.directory, 'manifest.json'), 10);
  const plan = await stage.plan();
  t.match(shown(plan), [
    'web-1/local/0 protected',
    /^web-1\/local\/1 damaged: not counted, not removed/,
    'web-1/local/2 goes',
    'web-1/local/3 goes',
    'web-1/local/4 goes',
    /last good/,
  ]);
  const [third, fourth] = [plan[0]?.decisions[3]?.entry, plan[0]?.decisions[4]?.entry];
  if (third === undefined || fourth === undefined) throw new Error('the plan is not complete');
  await stage.storages.get('local')?.setProtected(third, { reason: null });
  t.same(await stage.run(plan), [
    'failed web-1/local/2: MACHINE_BUSY',
    'removed web-1/local/4',
    'kept web-1/local/3: protected',
  ]);
});

void t.test('when the last good one turns damaged, another is the last, and is checked too', async (t) => {
  let newest: BackupEntry | undefined;
  const stage = stageFor(t, {
    keep: { last: 1 },
    deleteBackup: async (entry) => {
      if (nameOf(entry).endsWith('/0') && newest !== undefined)
        await unlink(join(newest.directory, newest.manifest?.memory?.file ?? ''));
    },
  });
  const entries = await stage.add(web, 'local', [0, 1, 2, 3]);
  newest = entries.at(-1);
  t.same(await stage.run(await stage.plan()), [
    'removed web-1/local/0',
    'removed web-1/local/1',
    'kept web-1/local/2: last 1 (1st), the last good one',
  ]);
  t.same(await stage.left(), ['web-1/local/2', 'web-1/local/3']);
});

void t.test('nothing of a machine goes anywhere when a last good one is not complete', async (t) => {
  const stage = stageFor(t, { keep: { last: 1 } });
  const entries = await stage.add(web, 'local', [0, 1]);
  await stage.add(web, 'vault', [0, 1]);
  const last = entries.at(-1);
  // Its length is as it was, so that only a closer look tells.
  const definition = join(last?.directory ?? '', last?.manifest?.definition.file ?? '');
  await writeFile(definition, '<domain/>');
  const plan = await stage.plan();
  t.match(plan, [{ decisions: [{ keep: false }, { entry: { state: 'Active' } }] }, {}]);
  t.same(await stage.run(plan), [
    'failed web-1 in local: BACKUP_DAMAGED',
    'failed web-1 in vault: BACKUP_DAMAGED',
  ]);
  t.equal((await stage.left()).length, 4);
});

void t.test('where backups are copied to, the rules of the copy hold', async (t) => {
  const replicate = [{ from: 'local', to: 'vault', keep: { last: 2 } }];
  const stage = stageFor(t, { keep: { last: 1 }, replicate });
  for (const storage of ['local', 'vault']) await stage.add(web, storage, [0, 1, 2]);
  t.same(await stage.run(await stage.plan()), [
    'removed web-1/local/0',
    'removed web-1/local/1',
    'removed web-1/vault/0',
  ]);
});

void t.test('a storage that is away keeps no other from being pruned', async (t) => {
  const away = (): never => {
    throw new StorageError('STORAGE_UNREACHABLE', 'away');
  };
  let isAway = true;
  const stage = stageFor(t, {
    keep: { last: 1 },
    around: (storage) =>
      storage.name === 'vault'
        ? changed(storage, { list: async (filter) => (isAway ? away() : storage.list(filter)) })
        : storage,
  });
  await stage.add(web, 'local', [0, 1]);
  await stage.add(web, 'vault', [0, 1]);
  const plan = await stage.plan();
  t.same(stage.unreachable, ['vault']);
  t.same(await stage.run(plan), ['removed web-1/local/0']);
  t.same(await stage.plan({ machines: ['gone'] }), [], 'perhaps it is in the storage that is away');
  isAway = false;
  const late = await stage.plan();
  isAway = true;
  t.same(await stage.run(late), ['failed web-1 in vault: STORAGE_UNREACHABLE']);
});

void t.test('a backup that comes in meanwhile pushes out none that was not shown', async (t) => {
  const stage = stageFor(t, {
    keep: { last: 2 },
    deleteBackup: async (entry, self) => {
      const later = (Date.now() - firstMs) / dayMs + 1;
      if (nameOf(entry).endsWith('/0')) await self.add(web, 'local', [2, later]);
    },
  });
  await stage.add(web, 'local', [0, 1, 3, 4]);
  t.same(await stage.run(await stage.plan()), ['removed web-1/local/0', 'removed web-1/local/1']);
  t.match(await stage.left(), ['web-1/local/2', 'web-1/local/3', 'web-1/local/4', String]);
});

void t.test('a signal ends it between two removals', async (t) => {
  const controller = new AbortController();
  const stage = stageFor(t, { keep: { last: 1 }, deleteBackup: async () => controller.abort() });
  await stage.add(web, 'local', [0, 1, 2]);
  t.same(await stage.run(await stage.plan(), controller.signal), ['removed web-1/local/0']);
});

void t.test('the agent prunes nothing that a restore is going to read', async (t) => {
  const site = await Site.create({ targets: ['vda'] });
  t.teardown(() => site[Symbol.asyncDispose]());
  const { agent } = site.openAgent();
  for (let count = 0; count < 3; count += 1) {
    t.match(await agent.run(await agent.createBackup({ machine: 'm' })), { state: 'finished' });
    await site.write();
  }
  const [oldest, next] = await agent.backups.list('m', aside);
  const plan = await agent.planRestore({
    backup: oldest?.id ?? '',
    inPlace: true,
    start: 'none',
  });
  agent.createRestore(plan);
  const pruned = (await agent.pruner.plan({ machines: [] }, aside)).map(
    (pruning): Pruning => ({
      ...pruning,
      keep: { last: 1 },
      decisions: pruning.decisions.map((decision, index) => ({ ...decision, keep: index === 2 })),
    }),
  );
  const heard = new Heard();
  await agent.pruner.run(pruned, { signal: never, listener: heard });
  t.match(heard.lines, [/^failed .*: MACHINE_BUSY$/, /^removed /]);
  const left = (await agent.backups.list('m', aside)).map(({ id }) => id);
  t.ok(left.includes(oldest?.id ?? '') && !left.includes(next?.id ?? ''));
});
