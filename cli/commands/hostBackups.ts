import { resolve } from 'node:path';
import { decideHosts, type HostDecision } from '../../agent/hostPruning.ts';
import { writeHostFiles } from '../../agent/hostFiles.ts';
import type { Agent } from '../../agent/agent.ts';
import { StorageError } from '../../storage/errors.ts';
import type { HostManifest } from '../../storage/hostManifest.ts';
import type { HostBackupEntry } from '../../storage/storage.ts';
import { shortId } from '../backups.ts';
import type { Cli } from '../cli.ts';
import { confirm } from '../confirm.ts';
import type { ExitCode } from '../exitCodes.ts';
import type { Options } from '../options.ts';
import { styled, tableLines, type Text } from '../output.ts';
import { changing, reading } from '../session.ts';
import { entriesOf } from './hostBackup.ts';

/** So many characters of an id are enough, as for backups of machines. */
const idCharactersMin = 8;

/** Every copy of one backup of a host. */
type Copies = readonly [HostBackupEntry, ...HostBackupEntry[]];

/** `stillpoint show --host BACKUP`. */
export function showHost(cli: Cli, reference: string): Promise<ExitCode> {
  return reading(cli, async ({ agent }) => {
    const copies = await find(cli, agent, reference);
    const { manifest } = good(copies);
    const storages = copies.map(({ storage, directory, problem }) => ({ storage, directory, problem }));
    if (cli.terminal.json) cli.terminal.object({ ...manifest, storages });
    else {
      const out = cli.terminal.out.bind(cli.terminal);
      out(styled('bold', manifest.host.name), ` at ${manifest.pointInTime}, id ${manifest.id}`);
      out(`libvirt ${manifest.host.libvirt}, QEMU ${manifest.host.qemu}, written by ${manifest.writer}`);
      for (const { storage, directory, problem } of storages)
        out(`${storage}: ${directory}${problem === null ? '' : `, damaged: ${problem}`}`);
      const columns = ['KIND', 'NAME', 'AUTOSTART', 'FILE'].map((title) => ({ title }));
      const rows = manifest.items.map(({ kind, name, autostart, file }): readonly Text[] => [
        kind,
        name,
        autostart === undefined ? '-' : autostart ? 'yes' : 'no',
        file,
      ]);
      for (const line of tableLines(columns, rows)) out(...line);
    }
    return copies.every(({ problem }) => problem === null) ? 0 : 5;
  });
}

/** `stillpoint delete --host BACKUP`. */
export function deleteHost(cli: Cli, reference: string, options: Options): Promise<ExitCode> {
  return changing(cli, async ({ agent, interruption }) => {
    const copies = await find(cli, agent, reference);
    tell(cli, 'delete for good: ', styled('bold', nameOf(copies[0])), ` at ${copies[0].pointInTime}`);
    for (const { storage, directory } of copies) tell(cli, `  ${storage}: ${directory}`);
    await confirm(cli, options, interruption.signal);
    for (const copy of copies) await agent.storage(copy.storage).deleteHostBackup(copy);
    if (cli.terminal.json) cli.terminal.object({ id: copies[0].manifest?.id ?? null, state: 'Deleted' });
    else cli.terminal.out('deleted');
    return 0;
  });
}

/** `stillpoint restore --host BACKUP --to DIR`: the files, each compared with its digest; defining is the operator's. */
export function restoreHost(cli: Cli, reference: string, to: string): Promise<ExitCode> {
  return reading(cli, async ({ agent }) => {
    const { manifest, directory } = good(await find(cli, agent, reference));
    const target = resolve(to);
    await writeHostFiles({ manifest, directory }, target);
    if (cli.terminal.json) cli.terminal.object({ id: manifest.id, directory: target, items: manifest.items });
    else {
      cli.terminal.out(
        styled('green', 'restored '),
        `${manifest.items.length} definitions of `,
        styled('bold', manifest.host.name),
        ` as of ${manifest.pointInTime} into ${target}`,
      );
      cli.terminal.remark(
        'nothing was defined: docs/RESTORE-BY-HAND.md, "A host that is built again", says in which order virsh can',
      );
    }
    return 0;
  });
}

/** `stillpoint prune --host`: each host in each storage, by the rules of `hostBackups.keep`. */
export function pruneHosts(cli: Cli, options: Options): Promise<ExitCode> {
  if (options.flag('dryRun')) {
    return reading(cli, async ({ agent }) => {
      const { entries, code } = await entriesOf(cli, agent);
      const decisions = decideHosts(agent.parts.config, entries);
      if (cli.terminal.json) printObjects(cli, decisions, false);
      else printDecisions(cli, decisions);
      return code;
    });
  }
  return changing(cli, async ({ agent, interruption }) => {
    const { entries, code } = await entriesOf(cli, agent);
    const decisions = decideHosts(agent.parts.config, entries);
    const going = decisions.filter(({ keep }) => !keep);
    const asks = going.length > 0 && !options.flag('yes');
    if (!cli.terminal.json || asks) printDecisions(cli, decisions);
    if (asks) await confirm(cli, options, interruption.signal);
    for (const { backup } of going) await agent.storage(backup.entry.storage).deleteHostBackup(backup.entry);
    if (cli.terminal.json) printObjects(cli, decisions, true);
    else cli.terminal.out(`removed ${going.length} of ${decisions.length}`);
    return code;
  });
}

function printObjects(cli: Cli, decisions: readonly HostDecision[], areRemoved: boolean): void {
  for (const { backup, keep, reasons } of decisions) {
    const { id, pointInTime, entry } = backup;
    const { storage, directory } = entry;
    const removed = areRemoved && !keep;
    cli.terminal.object({ id, host: nameOf(entry), pointInTime, storage, directory, keep, reasons, removed });
  }
}

function printDecisions(cli: Cli, decisions: readonly HostDecision[]): void {
  const columns = ['HOST', 'POINT IN TIME', 'STORAGE', 'ID', 'PRUNE', 'WHY'].map((title) => ({ title }));
  const rows = decisions.map(({ backup, keep, reasons }): readonly Text[] => [
    nameOf(backup.entry),
    backup.pointInTime,
    backup.entry.storage,
    shortId(backup.id),
    keep ? styled('green', 'keep') : styled('yellow', 'remove'),
    keep ? reasons.join(', ') : 'no rule keeps it',
  ]);
  for (const line of tableLines(columns, rows)) tell(cli, ...line);
}

function tell(cli: Cli, ...parts: readonly Text[]): void {
  if (cli.terminal.json) cli.terminal.err(...parts);
  else cli.terminal.out(...parts);
}

function nameOf({ manifest }: HostBackupEntry): string {
  return manifest?.host.name ?? '-';
}

/** The copy that can be read. @throws StorageError MANIFEST_INVALID where all are damaged */
function good(copies: Copies): HostBackupEntry & { readonly manifest: HostManifest } {
  const found = copies.find(({ problem }) => problem === null) ?? copies[0];
  const { manifest, directory, problem } = found;
  if (manifest !== null) return { ...found, manifest };
  throw new StorageError('MANIFEST_INVALID', `${directory}: ${problem ?? 'it has no manifest'}`, {
    hint: 'stillpoint list --host shows the others',
  });
}

/** By id, or its beginning, or `HOST@latest`. @throws StorageError BACKUP_NOT_FOUND, BACKUP_AMBIGUOUS */
async function find(cli: Cli, agent: Agent, reference: string): Promise<Copies> {
  const { entries } = await entriesOf(cli, agent);
  const [, host] = /^(.+)@latest$/.exec(reference) ?? [];
  const named =
    host === undefined
      ? entries.filter(({ manifest }) => isMeant(manifest?.id, reference))
      : entries.filter((entry) => nameOf(entry) === host && entry.problem === null).slice(-1);
  const ids = new Set(named.map(({ manifest }) => manifest?.id));
  const copies = entries.filter(({ manifest }) => manifest !== null && ids.has(manifest.id));
  const [first, ...others] = copies;
  if (first === undefined)
    throw new StorageError('BACKUP_NOT_FOUND', `there is no backup of a host ${reference}`, {
      hint: 'stillpoint list --host',
    });
  if (ids.size > 1)
    throw new StorageError('BACKUP_AMBIGUOUS', `${reference} can be ${ids.size} backups of a host`, {
      hint: 'give more of its id: stillpoint list --host',
    });
  return [first, ...others];
}

function isMeant(id: string | undefined, reference: string): boolean {
  return (
    id !== undefined &&
    (id === reference || (reference.length >= idCharactersMin && id.startsWith(reference)))
  );
}
