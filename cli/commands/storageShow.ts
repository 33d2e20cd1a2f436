import type { StorageUsage } from '../../agent/storageUsage.ts';
import { formatBytes } from '../../common/units.ts';
import type { Cli, RunVerb } from '../cli.ts';
import type { Text } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage show NAME`. */
export const storageShow: RunVerb = (cli, [name = '']) =>
  reading(cli, async ({ agent }) => {
    const usage = await agent.storageUsage(name);
    const { terminal } = cli;
    if (terminal.json) terminal.object({ storage: name, ...usage });
    else printUsage(cli, name, usage);
    const { unindexedPacks = 0, openSessions = 0 } = usage.repository ?? {};
    if (unindexedPacks > 0)
      terminal.warning(
        `no index names ${unindexedPacks} packs, so nobody knows what is in them: stillpoint storage check ${name} --rebuild-index`,
      );
    if (openSessions > 0) terminal.remark(`${openSessions} backups are being written, or their agents died`);
    if (usage.warning !== null) terminal.warning(usage.warning);
    if (usage.damagedBackups === 0) return 0;
    const look = usage.kind === 'repository' ? `stillpoint storage check ${name}` : 'stillpoint list';
    terminal.warning(`${usage.damagedBackups} backups cannot be read: ${look}`);
    return 5;
  });

/** What a storage holds, for people. */
export function printUsage({ terminal }: Pick<Cli, 'terminal'>, name: string, usage: StorageUsage): void {
  const { kind, location, capacityBytes, freeBytes, storedBytes, quotaBytes, repository } = usage;
  const size = (bytes: number | null): string => (bytes === null ? 'unknown' : formatBytes(bytes));
  const field = (title: string, value: string): void => terminal.out(`${title.padEnd(15)} ${value}`);
  terminal.out(`${name}: ${kind} ${location}${repository === null ? '' : `, made ${repository.createdAt}`}`);
  field(
    'capacity',
    capacityBytes === null ? 'without bounds' : `${size(capacityBytes)}, ${size(freeBytes)} free`,
  );
  if (quotaBytes !== null) field('quota', size(quotaBytes));
  field('stored', `${size(storedBytes)}${repository === null ? '' : packsText(repository)}`);
  field('referenced', `${size(usage.referencedBytes)} by ${usage.backups} backups`);
  if (kind === 'repository') {
    field('deduplication', ratioText(usage.deduplicationRatio, usage));
    field('compression', ratioText(usage.compressionRatio, usage));
  }
  if (repository?.access === 'write only') field('access', 'this host may write, and not read');
  if (usage.machines.length === 0) return;
  terminal.table(
    [{ title: 'MACHINE' }, { title: 'BACKUPS', align: 'right' }, { title: 'REFERENCED', align: 'right' }],
    usage.machines.map((machine): readonly Text[] => [
      machine.name,
      String(machine.backups),
      formatBytes(machine.referencedBytes),
    ]),
  );
}

function packsText({ packs, chunks }: NonNullable<StorageUsage['repository']>): string {
  return ` in ${packs} packs${chunks === null ? ' of unknown content' : `, ${chunks} chunks`}`;
}

function ratioText(ratio: number | null, { repository }: StorageUsage): string {
  if (ratio !== null) return `${ratio.toFixed(1)} : 1`;
  return repository?.chunkBytes === null ? 'unknown' : '-';
}
