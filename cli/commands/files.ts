import type { ListedFile } from '../../agent/lookedBackups.ts';
import type { FileSystemChoice } from '../../agent/restore/foundFiles.ts';
import { shownPath } from '../../agent/restore/guestTree.ts';
import { formatBytes } from '../../common/units.ts';
import { findBackup } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import type { ExitCode } from '../exitCodes.ts';
import { Interruption } from '../interruption.ts';
import type { Options } from '../options.ts';
import { reading } from '../session.ts';
import { clearAbandoned } from './storageMount.ts';

/** So many paths of files that were left out are told one by one. */
const toldMax = 20;

/** `stillpoint files BACKUP [PATH]`: what is in the file system of a guest. */
export const files: RunVerb = (cli, [backup = '', path = '/'], options) =>
  reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    using interruption = new Interruption(terminal, agent.parts.journal);
    await clearAbandoned(cli, agent);
    await findBackup(cli, agent.backups, backup);
    const entry = await agent.findBackup(backup, options.text('storage'));
    const { signal } = interruption;
    const found = await agent.looking.list({ entry, signal, ...choiceOf(options) }, path);
    if (terminal.json) terminal.object({ fileSystem: found.fileSystem, files: found.files.map(fileJson) });
    else
      terminal.table(
        [
          { title: 'MODE' },
          { title: 'OWNER' },
          { title: 'SIZE', align: 'right' },
          { title: 'MODIFIED' },
          { title: 'NAME' },
        ],
        found.files.map((file) => [
          `${letters[file.kind]}${file.mode.toString(8).padStart(4, '0')}`,
          `${file.uid}:${file.gid}`,
          file.kind === 'file' ? formatBytes(file.sizeBytes) : '-',
          file.modifiedAt?.toISOString().slice(0, 19) ?? 'unreadable',
          `${shownPath(file.name)}${file.leadsTo === null ? '' : ` -> ${shownPath(file.leadsTo)}`}`,
        ]),
      );
    return 0;
  });

/** `stillpoint restore BACKUP --files PATH… --to DIR`. */
export function restoreFiles(cli: Cli, backup: string, options: Options): Promise<ExitCode> {
  const paths = options.texts('files') ?? [];
  const to = options.text('to');
  if (to === undefined)
    throw new CliError('USAGE', 'it is not said where the files go', 'give the directory: --to DIR');
  const choice = choiceOf(options);
  return reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    using interruption = new Interruption(terminal, agent.parts.journal);
    await clearAbandoned(cli, agent);
    await findBackup(cli, agent.backups, backup);
    const entry = await agent.findBackup(backup, options.text('storage'));
    const { signal } = interruption;
    const force = options.flag('force');
    const { fileSystem, extracted } = await agent.looking.extract({ entry, signal, ...choice }, paths, {
      to,
      force,
    });
    // A repository compares all that it hands out.
    if (agent.storage(entry.storage).kind === 'directory')
      terminal.remark(
        `these files were not compared with the digests of the backup: stillpoint verify --data ${backup}`,
      );
    const { files: count, directories, links, bytes, skipped, unreadable, withoutSetId } = extracted;
    tellLeftOut(cli, 'not taken out (devices, sockets, pipes)', skipped);
    tellLeftOut(cli, 'it could not be read', unreadable);
    tellLeftOut(cli, 'without set-user-ID and set-group-ID now', withoutSetId);
    const left = {
      skipped: skipped.map(shownPath),
      unreadable: unreadable.map(shownPath),
      withoutSetId: withoutSetId.map(shownPath),
    };
    if (terminal.json) terminal.object({ fileSystem, to, ...extracted, ...left });
    else
      terminal.out(
        `${count} files (${formatBytes(bytes)}), ${directories} directories and ${links} links of ${fileSystem} as of ${entry.pointInTime} are in ${to}`,
      );
    return unreadable.length > 0 ? 3 : 0;
  });
}

/** @throws CliError USAGE */
function choiceOf(options: Options): FileSystemChoice {
  const partition = options.text('partition');
  if (partition !== undefined && !/^(\d+(:.+)?|[^/:]+\/[^/:]+|md\d+)$/.test(partition))
    throw new CliError(
      'USAGE',
      '--partition takes a number, NUMBER:SUBVOLUME of btrfs, or GROUP/VOLUME of LVM',
      '--partition 2; 0 is the whole volume',
    );
  return { partition, volumes: options.texts('volume')?.flatMap((targets) => targets.split(',')) };
}

const letters: Readonly<Record<ListedFile['kind'], string>> = {
  file: '-',
  directory: 'd',
  link: 'l',
  special: 's',
  nameless: '?',
};

function fileJson({ name, leadsTo, inode: _ofTheGuest, ...file }: ListedFile): object {
  return { name: shownPath(name), ...file, leadsTo: leadsTo === null ? null : shownPath(leadsTo) };
}

function tellLeftOut({ terminal }: Cli, what: string, paths: readonly string[]): void {
  for (const path of paths.slice(0, toldMax)) terminal.warning(`${shownPath(path)}: ${what}`);
  if (paths.length > toldMax) terminal.warning(`${paths.length - toldMax} more: ${what}`);
}
