import { truncate } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { RecordedTerminal } from '../cli/fixture.ts';
import { combinedExitCode, type ExitCode } from '../cli/exitCodes.ts';
import { PolicyCopies } from '../cli/policyCopies.ts';
import { checkReplications } from '../cli/doctor/replications.ts';
import { errorRecord } from '../common/errors.ts';
import { StorageError } from '../storage/errors.ts';
import { collectGarbage } from '../storage/repository/collection.ts';
import { type LivingAgent, removeSharedImages, Site } from '../test/sim/site.ts';
import type { JobRow } from './jobs/job.ts';

/* Copies that a policy asks for after a backup, to a repository that may be away. */

t.teardown(removeSharedImages);

const rule = { from: 'near', to: 'vault' };

const inGroup = { from: 'main', to: 'vault' };

/** A policy writes to a group, of which `far` stands in while `near` has no room. */
function siteWithGroup(replicate: readonly unknown[] = [inGroup]): Promise<Site> {
  return Site.create({
    targets: ['vda'],
    storages: ['near', 'far', 'vault'],
    storageGroups: { main: ['near', 'far'] },
    policy: { storages: ['main'], keep: { last: 1 }, replicate },
  });
}

function siteWithRule(): Promise<Site> {
  return Site.create({
    targets: ['vda'],
    storages: ['near', 'vault'],
    policy: { storages: ['near'], replicate: [rule] },
  });
}

async function backUp(site: Site, { agent }: LivingAgent): Promise<JobRow> {
  await site.write();
  return agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' }));
}

async function copy(site: Site, { agent }: LivingAgent, by = rule): Promise<JobRow> {
  return agent.run(agent.replications.create({ name: 'm', uuid: site.uuid }, by));
}

async function idsIn(site: Site, name: 'near' | 'far' | 'vault'): Promise<readonly (string | null)[]> {
  return (await site.openStorages().get(name)?.list())?.map(({ id }) => id) ?? [];
}

void t.test('after a backup its copy is made, as the same backup, while the machine is free', async (t) => {
  await using site = await siteWithRule();
  let atOnce: JobRow | undefined;
  const living = site.openAgent(async (moment, self) => {
    if (moment !== 'replicate/before:copy') return;
    atOnce ??= await backUp(site, self);
  });
  t.match(await backUp(site, living), { state: 'finished' });
  t.same(await idsIn(site, 'vault'), []);
  t.match(await copy(site, living), { state: 'finished', kind: 'replicate', error: null });
  t.match(atOnce, { state: 'finished' }, 'another backup of the machine was made meanwhile');
  t.equal((await idsIn(site, 'near')).length, 2);
  t.same(await idsIn(site, 'vault'), await idsIn(site, 'near'));
});

void t.test('what could not be copied is brought by the next run, oldest first', async (t) => {
  await using site = await siteWithRule();
  const living = site.openAgent();
  if (site.vault === undefined) throw new Error('no vault');
  for (const fault of ['away', 'full'] as const) {
    site.vault.fault = fault;
    t.match(await backUp(site, living), { state: 'finished' });
    const code = fault === 'away' ? 'STORAGE_UNREACHABLE' : 'STORAGE_FULL';
    t.match(await copy(site, living), { state: 'failed', error: { code }, holdsMachine: false });
  }
  site.vault.fault = null;
  t.match(await checkReplications(living.agent), [
    { verdict: 'warn', message: /vault has not got 2 of near, the oldest of .*STORAGE_FULL/ },
  ]);
  const row = await copy(site, living);
  t.same(row.record, { ...Object(row.record), copied: await idsIn(site, 'near') });
  t.same(await idsIn(site, 'vault'), await idsIn(site, 'near'));
  t.match(await checkReplications(living.agent), [{ verdict: 'ok' }]);
});

void t.test('a backup that could not be copied is not passed by those after it', async (t) => {
  await using site = await siteWithRule();
  const { vault } = site;
  if (vault === undefined) throw new Error('no vault');
  let attempts = 0;
  const living = site.openAgent((moment) => {
    if (moment === 'vault/before:create sessions') vault.fault = (attempts += 1) === 1 ? 'full' : null;
  });
  for (let backup = 0; backup < 2; backup += 1) await backUp(site, living);
  t.match(await copy(site, living), { state: 'failed', error: { code: 'STORAGE_FULL' } });
  vault.fault = null;
  t.same(await idsIn(site, 'vault'), []);
  t.match(await copy(site, living), { state: 'finished' });
  t.same(await idsIn(site, 'vault'), await idsIn(site, 'near'));
});

void t.test('one that died leaves nothing to an operator, and the next one goes on', async (t) => {
  await using site = await siteWithRule();
  const living = site.openAgent((moment, self) => {
    if (moment === 'vault/after:create packs') self.life.die();
  });
  await living.life.live(async () => {
    await backUp(site, living);
    await copy(site, living);
  });
  t.equal(living.life.isDead, true);
  site.buryOwners();
  const { rows, ...next } = await site.recover();
  t.match(rows, [{ kind: 'replicate', state: 'failed', error: { code: 'AGENT_DIED' }, holdsMachine: false }]);
  t.match(await copy(site, next), { state: 'finished' });
  t.same(await idsIn(site, 'vault'), await idsIn(site, 'near'));
});

void t.test('a copy that is cancelled ends so, and one at a time goes to one place', async (t) => {
  await using site = await siteWithRule();
  const machine = { name: 'm', uuid: site.uuid };
  const living = site.openAgent((moment, self) => {
    if (moment !== 'replicate/copy/copied') return;
    t.throws(() => self.agent.replications.create(machine, rule), { code: 'MACHINE_BUSY' });
    for (const { id } of self.journal.holding()) self.journal.requestCancel(id);
  });
  for (let backup = 0; backup < 2; backup += 1) await backUp(site, living);
  t.match(await copy(site, living), { state: 'cancelled', holdsMachine: false });
  t.equal((await idsIn(site, 'vault')).length, 1, 'between two copies');
});

void t.test('what is damaged is told, and holds up nothing that came after it', async (t) => {
  await using site = await siteWithRule();
  const living = site.openAgent();
  for (let backup = 0; backup < 2; backup += 1) await backUp(site, living);
  const [damaged, whole] = (await living.storages.get('near')?.list()) ?? [];
  const file = join(damaged?.directory ?? '', damaged?.manifest?.definition.file ?? '');
  await truncate(file, 1);
  t.match(await copy(site, living), { state: 'failed', error: { code: 'BACKUP_DAMAGED' } });
  t.same(await idsIn(site, 'vault'), [whole?.id]);
  t.match(living.warnings.at(-1), /is not copied to vault/);
});

void t.test('what is not copied on yet is not pruned, nor what a copy reads', async (t) => {
  await using site = await Site.create({
    targets: ['vda'],
    storages: ['near', 'vault'],
    policy: { storages: ['near'], keep: { last: 1 }, replicate: [{ ...rule, keep: { last: 9 } }] },
  });
  const { vault } = site;
  if (vault === undefined) throw new Error('no vault');
  const refused: unknown[] = [];
  const living = site.openAgent(async (moment, self) => {
    if (moment !== 'replicate/copy/copied') return;
    for (const entry of (await self.storages.get('near')?.list()) ?? [])
      await self.agent.deleteBackup(entry).catch((error: unknown) => refused.push(error));
  });
  const prune = async (): Promise<readonly string[]> => {
    const { pruner } = living.agent;
    const plan = await pruner.plan({ machines: [], storages: ['near'] }, () => undefined);
    const { signal } = new AbortController();
    const listener = { removed: () => undefined, keptAfterAll: () => undefined };
    await pruner.run(plan, {
      signal,
      listener: {
        ...listener,
        failed: (_, __, error) => {
          throw error;
        },
      },
    });
    return plan.flatMap(({ decisions }) => decisions.flatMap(({ reasons }) => reasons));
  };
  for (let backup = 0; backup < 3; backup += 1) await backUp(site, living);
  vault.fault = 'away';
  t.match(await prune(), [/^whether vault has it cannot be found out/, /^whether vault/, /last/]);
  vault.fault = null;
  t.match(await prune(), ['it is not copied to vault yet', 'it is not copied to vault yet', /last/]);
  const made = await idsIn(site, 'near');
  t.equal(made.length, 3);
  t.match(await copy(site, living), { state: 'finished' });
  t.match(refused, { length: 9 });
  for (const error of refused)
    t.match(error, { code: 'MACHINE_BUSY', message: /copies backups of m from near/ });
  await prune();
  t.same(await idsIn(site, 'near'), made.slice(2));
  t.same(await idsIn(site, 'vault'), made);
});

void t.test(
  'a copy that a collection gives up meanwhile is begun once more, and is passed by none',
  async (t) => {
    await using site = await siteWithRule();
    let fenced = false;
    const living = site.openAgent(async (moment) => {
      if (fenced || moment !== 'vault/after:create packs') return;
      fenced = true;
      const repository = await site.vault?.repository();
      if (repository === undefined) throw new Error('no vault');
      await collectGarbage(repository, {
        collector: { host: 'other', at: new Date().toISOString() },
        repackBelow: 0,
        onOpenSession: () => Promise.resolve('fence'),
      });
    });
    for (let backup = 0; backup < 2; backup += 1) await backUp(site, living);
    t.match(await copy(site, living), { state: 'finished', error: null });
    t.equal(fenced, true);
    t.same(await idsIn(site, 'vault'), await idsIn(site, 'near'));
  },
);

/** What `stillpoint backup` does about copies after a backup that was made. */
async function copiesOf(site: Site, { agent }: LivingAgent) {
  const recorded = new RecordedTerminal({ json: true });
  const view = { name: (): void => undefined, done: (): void => undefined };
  const interruption = { signal: new AbortController().signal };
  const copies = new PolicyCopies({ terminal: recorded.terminal }, { agent, view, interruption });
  copies.add({ name: 'm', uuid: site.uuid });
  const backedUp: ExitCode = 0;
  return { code: combinedExitCode([backedUp, ...(await copies.end())]), recorded };
}

void t.test('a command says what was copied, and ends with 3 when a copy fails', async (t) => {
  await using site = await siteWithRule();
  const living = site.openAgent();
  if (site.vault === undefined) throw new Error('no vault');
  await backUp(site, living);
  site.vault.fault = 'away';
  const failed = await copiesOf(site, living);
  t.equal(failed.code, 3);
  t.match(failed.recorded.stderr, /STORAGE_UNREACHABLE/);
  site.vault.fault = null;
  const made = await copiesOf(site, living);
  t.equal(made.code, 0);
  t.match(JSON.parse(made.recorded.stdout), { state: 'copied', to: 'vault', machine: { name: 'm' } });
});

/** `near` cannot be used while this goes on. */
async function withoutNear<T>(living: LivingAgent, act: () => Promise<T>): Promise<T> {
  const near = living.storages.get('near');
  if (near === undefined) throw new Error('no near');
  const kept = { check: near.check.bind(near), list: near.list.bind(near) };
  const away = new StorageError('STORAGE_UNREACHABLE', 'near is away');
  const about = { name: 'near', location: near.location, ok: false, freeBytes: null };
  near.check = () => Promise.resolve({ ...about, problem: errorRecord(away) });
  near.list = () => Promise.reject(away);
  try {
    return await act();
  } finally {
    Object.assign(near, kept);
  }
}

void t.test('of a group, what a stand-in took is copied, and stays until it is', async (t) => {
  await using site = await siteWithGroup();
  const living = site.openAgent();
  const { agent } = living;
  const reasonsIn = async (name: string): Promise<readonly string[]> => {
    const plan = await agent.pruner.plan({ machines: [], storages: [name] }, () => undefined);
    return plan.flatMap(({ decisions }) => decisions.flatMap(({ reasons }) => reasons));
  };
  await withoutNear(living, async () => {
    for (let backup = 0; backup < 2; backup += 1) await backUp(site, living);
  });
  t.equal((await idsIn(site, 'far')).length, 2);
  t.match(await reasonsIn('far'), ['it is not copied to vault yet', /last/]);
  t.match(await checkReplications(agent), [
    {
      verdict: 'warn',
      message: /vault has not got 2 of main/,
      hint: /^stillpoint replicate m --from far --to vault/,
    },
  ]);
  const made = await copy(site, living, inGroup);
  t.match(made, { state: 'finished' });
  t.match(made.record, { copied: await idsIn(site, 'far') });
  t.same(await idsIn(site, 'vault'), await idsIn(site, 'far'));
  t.match(await checkReplications(agent), [{ verdict: 'ok' }]);
  t.match(await reasonsIn('far'), [/./], 'only the last has a reason to stay');
});

void t.test(
  'what its storage could not hand out is brought later, though newer ones went before',
  async (t) => {
    await using site = await siteWithGroup();
    const living = site.openAgent();
    await backUp(site, living);
    await copy(site, living, inGroup);
    await backUp(site, living);
    await withoutNear(living, async () => {
      await backUp(site, living);
      t.match(await copy(site, living, inGroup), { state: 'finished' }, 'the stand-in is copied meanwhile');
      t.match(living.warnings.at(-1), /what near has is not copied to vault until it can be read/);
      t.equal((await idsIn(site, 'vault')).length, 2);
      t.match(await copy(site, living, inGroup), { state: 'failed', error: { code: 'STORAGE_UNREACHABLE' } });
      t.match(await checkReplications(living.agent), [
        { verdict: 'warn', message: /whether vault has what it should get from near cannot be found out/ },
      ]);
    });
    t.match(await checkReplications(living.agent), [{ verdict: 'warn', message: /has not got 1 of main/ }]);
    t.match(await copy(site, living, inGroup), { state: 'finished' });
    t.same(
      new Set(await idsIn(site, 'vault')),
      new Set([...(await idsIn(site, 'near')), ...(await idsIn(site, 'far'))]),
    );
  },
);

void t.test('doctor names the storages of a group that no entry copies on', async (t) => {
  await using site = await siteWithGroup([{ from: 'near', to: 'vault' }]);
  const { agent } = site.openAgent();
  t.match(await checkReplications(agent), [
    {
      verdict: 'warn',
      message: 'a backup that goes to far of group main is not copied to vault',
      hint: /from: main, to: vault/,
    },
    { verdict: 'ok' },
  ]);
  await using each = await siteWithGroup([rule, { from: 'far', to: 'vault' }]);
  t.match(await checkReplications(each.openAgent().agent), [{ verdict: 'ok' }, { verdict: 'ok' }]);
});
