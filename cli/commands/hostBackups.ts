import { resolve } from 'node:path';
import { documentPath } from '../../common/documents.ts';
import { writeHostFiles } from '../../agent/hostFiles.ts';
import type { HostCopies } from '../../agent/storedHostBackups.ts';
import { StorageError } from '../../storage/errors.ts';
import type { HostManifest } from '../../storage/hostManifest.ts';
import type { HostBackupEntry } from '../../storage/storage.ts';
import { tellUnreachable } from '../backups.ts';
import type { Cli } from '../cli.ts';
import { confirm } from '../confirm.ts';
import type { ExitCode } from '../exitCodes.ts';
import { findHostBackup } from '../hostReference.ts';
import { type HostSession, tell } from '../hostSession.ts';
import type { Options } from '../options.ts';
import { styled, tableLines, type Text } from '../output.ts';
import { changing, reading } from '../session.ts';

/** `stillpoint show --host BACKUP`. */
export function showHost(cli: Cli, reference: string): Promise<ExitCode> {
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const copies = await findHostBackup(cli, agent.parts, reference, unreachable.tell);
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
    return copies.every(({ problem }) => problem === null) ? unreachable.code : 5;
  });
}

/** `stillpoint delete --host BACKUP`. */
export function deleteHost(cli: Cli, reference: string, options: Options): Promise<ExitCode> {
  return changing(cli, (session) => deleteEveryCopy(cli, session, reference, options));
}

/** Every copy, or none where a storage does not answer: one that is in there would stay. */
export async function deleteEveryCopy(
  cli: Cli,
  { agent, interruption }: HostSession,
  reference: string,
  options: Options,
): Promise<ExitCode> {
  const copies = await findHostBackup(cli, agent.parts, reference, (_, error) => {
    throw error;
  });
  tell(cli, 'delete for good: ', styled('bold', copies[0].host), ` at ${copies[0].pointInTime}`);
  for (const { storage, directory } of copies) tell(cli, `  ${storage}: ${directory}`);
  await confirm(cli, options, interruption.signal);
  for (const copy of copies) await agent.storage(copy.storage).deleteHostBackup(copy);
  const [id = null] = copies.flatMap(({ manifest }) => manifest?.id ?? []);
  if (cli.terminal.json) cli.terminal.object({ id, state: 'Deleted' });
  else cli.terminal.out('deleted');
  return 0;
}

/** `stillpoint restore --host BACKUP --to DIR`: the files, each compared with its digest; defining is the operator's. */
export function restoreHost(cli: Cli, reference: string, to: string): Promise<ExitCode> {
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const { manifest, directory, storage } = good(
      await findHostBackup(cli, agent.parts, reference, unreachable.tell),
    );
    const target = resolve(to);
    await writeHostFiles(agent.storage(storage), { manifest, directory }, target);
    if (cli.terminal.json) cli.terminal.object({ id: manifest.id, directory: target, items: manifest.items });
    else {
      cli.terminal.out(
        styled('green', 'restored '),
        `${manifest.items.length} definitions of `,
        styled('bold', manifest.host.name),
        ` as of ${manifest.pointInTime} into ${target}`,
      );
      cli.terminal.remark(
        `nothing was defined: ${documentPath('docs/RESTORE-BY-HAND.md')}, "A host that is built again", says in which order virsh can`,
      );
    }
    return unreachable.code;
  });
}

/** The copy that can be read. @throws StorageError MANIFEST_INVALID where all are damaged */
function good(copies: HostCopies): HostBackupEntry & { readonly manifest: HostManifest } {
  const found =
    copies.find(({ problem }) => problem === null) ??
    copies.find(({ manifest }) => manifest !== null) ??
    copies[0];
  const { manifest, directory, problem } = found;
  if (manifest !== null) return { ...found, manifest };
  throw new StorageError('MANIFEST_INVALID', `${directory}: ${problem ?? 'it has no manifest'}`, {
    hint: 'stillpoint list --host shows the others',
  });
}
