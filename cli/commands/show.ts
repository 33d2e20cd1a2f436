import { formatDuration } from '../../common/time.ts';
import { formatBytes } from '../../common/units.ts';
import { isFileExtra, type Manifest } from '../../storage/manifest.ts';
import { isTemplate } from '../../storage/template.ts';
import {
  type Backup,
  backupJson,
  backupOfEntry,
  findBackup,
  howRead,
  storedBytes,
  tellUnreachable,
} from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { styled } from '../output.ts';
import { reading } from '../session.ts';
import { showHost } from './hostBackups.ts';
import { restoreByHand } from '../restoreByHand.ts';

/** `stillpoint show BACKUP`. */
export const show: RunVerb = (cli, [reference = ''], options) => {
  if (options.flag('host')) return showHost(cli, reference);
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const backup = await backupOfEntry(
      agent,
      await findBackup(cli, agent.backups, reference),
      unreachable.tell,
    );
    if (cli.terminal.json) cli.terminal.object(backupJson(backup));
    else printBackup(cli, backup, agent.storage(backup.entry.storage).kind === 'directory');
    return backup.state === 'Active' ? unreachable.code : 5;
  });
};

function printBackup(cli: Cli, backup: Backup, keepsFiles: boolean): void {
  const { terminal } = cli;
  const { entry, storages, localOnly } = backup;
  const field = (name: string, value: string): void => terminal.out(styled('bold', name.padEnd(16)), value);
  field('Backup', entry.id ?? 'unknown: the manifest cannot be read');
  field(
    entry.manifest !== null && isTemplate(entry.manifest) ? 'Template' : 'Machine',
    entry.machine.uuid === null ? entry.machine.name : `${entry.machine.name} (${entry.machine.uuid})`,
  );
  field('Point in time', entry.pointInTime);
  field('State', backup.state);
  for (const copy of storages) {
    field(
      'Storage',
      `${copy.name}: ${copy.directory}${copy.local ? ' (on the file system of the machine)' : ''}`,
    );
    if (copy.problem !== null) terminal.out(styled('red', `${' '.repeat(16)}damaged: ${copy.problem}`));
    if (copy.verified !== null) {
      const { ok, detail, at, start, picture } = copy.verified;
      const what = `${start === 'resume' ? 'resumed' : 'booted'} on ${at}: ${ok ? 'it works' : 'IT DOES NOT WORK'} (${detail})`;
      terminal.out(`${' '.repeat(16)}${what}${picture === null ? '' : `, picture ${picture}`}`);
    }
    if (copy.protected) {
      const because = copy.protectedReason === null ? '' : `: ${copy.protectedReason}`;
      terminal.out(`${' '.repeat(16)}protected${because}`);
    }
  }
  if (localOnly) field('Remark', 'local-only: every copy goes with the file system of the machine');
  const { manifest } = entry;
  if (manifest === null) return;
  printManifest(field, manifest, storedBytes(entry));
  // What is in a repository nobody reads by hand.
  if (!keepsFiles) return;
  terminal.out('');
  terminal.out(
    styled('bold', 'Restore by hand'),
    ' (when there is no Stillpoint; otherwise: stillpoint restore)',
  );
  for (const line of restoreByHand(entry.directory, manifest))
    terminal.out(line.startsWith('#') ? styled('dim', `  ${line}`) : `  ${line}`);
}

function printManifest(
  field: (name: string, value: string) => void,
  manifest: Manifest,
  size: number | null,
): void {
  field('Mode', `${manifest.mode} (${manifest.modeReason})`);
  const { consistency, consistencyReason, freezeMs } = manifest;
  field(
    'Consistency',
    consistencyReason === undefined ? consistency : `${consistency} (${consistencyReason})`,
  );
  if (manifest.checkpoint !== undefined) field('Checkpoint', manifest.checkpoint);
  field('Pause', manifest.pauseMs === null ? 'none measured' : formatDuration(manifest.pauseMs));
  if (manifest.group !== undefined)
    field('Together with', `${manifest.group.machines.join(', ')} (group ${manifest.group.id})`);
  if (freezeMs !== undefined) field('Freeze', `writes of the guest waited up to ${formatDuration(freezeMs)}`);
  field('Size', formatBytes(size ?? 0));
  field('Host', `${manifest.host.name}, libvirt ${manifest.host.libvirt}, QEMU ${manifest.host.qemu}`);
  field('Written by', `${manifest.writer}, format ${manifest.formatVersion}`);
  for (const [key, value] of Object.entries(manifest.labels)) field('Label', `${key}=${value}`);
  for (const volume of manifest.volumes) {
    field(
      `Volume ${volume.target}`,
      `${volume.file}, ${volume.format}, ${formatBytes(volume.virtualSizeBytes)} for the guest, ${formatBytes(volume.storedBytes)} stored, was ${volume.source}`,
    );
    if (volume.read === 'increment' || volume.reason !== undefined) field('', howRead(volume));
  }
  if (manifest.memory !== undefined) {
    const { file, sizeBytes, running } = manifest.memory;
    field(
      'Memory',
      `${file}, ${formatBytes(sizeBytes)}, the machine was ${running ? 'running' : 'suspended'}`,
    );
  }
  field('Definition', manifest.definition.file);
  for (const extra of manifest.extras)
    field(
      extra.kind,
      `${extra.file}, ${formatBytes(extra.sizeBytes)}, ${isFileExtra(extra) ? `was ${extra.source}` : `definition of ${extra.name}`}`,
    );
  field(
    'Steps',
    manifest.steps.map(({ name, durationMs }) => `${name} ${formatDuration(durationMs)}`).join(', '),
  );
}
