import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { RecordedTerminal } from '../cli/fixture.ts';
import { printUsage } from '../cli/commands/storageShow.ts';
import { removeSharedImages, Site, type StorageName } from '../test/sim/site.ts';

t.teardown(removeSharedImages);

async function siteWith(test: Test, storage: StorageName): Promise<Site> {
  const site = await Site.create({ targets: ['vda'], storages: [storage] });
  test.teardown(() => site[Symbol.asyncDispose]());
  const { agent } = site.openAgent();
  for (const _ of [1, 2]) {
    await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk', reread: true }));
    await site.write();
  }
  return site;
}

function shown(storage: string, usage: Parameters<typeof printUsage>[2]): string {
  const recorded = new RecordedTerminal();
  printUsage(recorded, storage, usage);
  return recorded.stdout;
}

void t.test('a repository tells its room, what it holds, its ratios and its machines', async (t) => {
  const site = await siteWith(t, 'vault');
  const usage = await site.openAgent().agent.storageUsage('vault');
  t.match(usage, {
    kind: 'repository',
    capacityBytes: Number,
    backups: 2,
    damagedBackups: 0,
    machines: [{ name: 'm', uuid: site.uuid, backups: 2 }],
    repository: { unindexedPacks: 0, openSessions: 0 },
  });
  t.equal(usage.deduplicationRatio, usage.referencedBytes / (usage.repository?.chunkBytes ?? 0));
  t.ok((usage.compressionRatio ?? 0) > 1, 'its chunks are mostly zeros');
  t.match(shown('vault', usage), /deduplication +\d+\.\d : 1\n/);
});

void t.test('where indexes are missing, what is stored is told, and what is not known', async (t) => {
  const site = await siteWith(t, 'vault');
  const indexes = join(site.vault?.directory ?? '', 'indexes');
  for (const name of await readdir(indexes)) await rm(join(indexes, name));
  const usage = await site.openAgent().agent.storageUsage('vault');
  t.match(usage, {
    deduplicationRatio: null,
    compressionRatio: null,
    repository: { chunks: null, chunkBytes: null },
  });
  t.ok((usage.storedBytes ?? 0) > 0);
  t.equal(usage.repository?.unindexedPacks, usage.repository?.packs);
  const text = shown('vault', usage);
  t.match(text, /stored +\d[^\n]* in \d+ packs of unknown content\n/);
  t.match(text, /deduplication +unknown\n/);
  t.notMatch(text, /stored +0 B/);
});

void t.test('a directory tells its room, what it holds and its machines', async (t) => {
  const site = await siteWith(t, 'near');
  const usage = await site.openAgent().agent.storageUsage('near');
  t.match(usage, {
    kind: 'directory',
    capacityBytes: Number,
    quotaBytes: null,
    backups: 2,
    deduplicationRatio: null,
    machines: [{ name: 'm', backups: 2 }],
    repository: null,
  });
  t.ok((usage.storedBytes ?? 0) > 0);
  t.ok(usage.referencedBytes > 0);
  t.notMatch(shown('near', usage), /deduplication/);
});
