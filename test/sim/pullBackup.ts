import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { execa } from 'execa';

import type { PullBackup } from '../../agent/hypervisor/backupXml.ts';
import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { exists } from '../../common/files.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { eventually } from '../lab/eventually.ts';
import { refusal } from './errors.ts';
import { tool } from './images.ts';
import type { Instance } from './machine.ts';

/** A pull-mode backup that a simulated QEMU serves: copies of its images behind a real NBD server. */
export interface RunningBackup {
  readonly backup: PullBackup;
  /** Ends the server. As a QEMU that is killed leaves them, socket and scratch files stay. */
  stop(): Promise<void>;
}

/** `virDomainBackupBegin`: what the volumes hold now is served until the backup ends. */
export async function beginBackup(instance: Instance, backup: PullBackup): Promise<RunningBackup> {
  const definition = DomainXml.parse(instance.definition);
  const blockdevs: string[] = [];
  const exports: string[] = [];
  // A backup that does not begin leaves no scratch file.
  for (const { target, scratchFile, since } of backup.volumes) {
    const { path, format } = definition.volume(target);
    if (path === undefined) throw refusal('invalidArgument', `disk '${target}' has no image`);
    if (await exists(scratchFile)) throw refusal('operationFailed', `store '${scratchFile}' exists already`);
    if (since !== undefined) await requireBitmap(target, path, format, since);
  }
  for (const { target, exportName, scratchFile, since } of backup.volumes) {
    const { path = '', format } = definition.volume(target);
    const bitmaps = since === undefined ? [] : ['--bitmaps'];
    await tool('qemu-img', [
      'convert',
      '-U',
      '-f',
      format ?? 'raw',
      '-O',
      'qcow2',
      ...bitmaps,
      path,
      scratchFile,
    ]);
    const changes = since === undefined ? '' : `,bitmaps.0=backup-${target}`;
    if (since !== undefined) {
      const bitmap = ['--add', '--merge', since, '-g', '64k', scratchFile, `backup-${target}`];
      await tool('qemu-img', ['bitmap', ...bitmap]);
    }
    blockdevs.push(
      '--blockdev',
      `driver=qcow2,node-name=${target},read-only=on,file.driver=file,file.filename=${scratchFile}`,
    );
    exports.push('--export', `type=nbd,id=${target},node-name=${target},name=${exportName}${changes}`);
  }
  const server = execa(
    'qemu-storage-daemon',
    [...blockdevs, '--nbd-server', `addr.type=unix,addr.path=${backup.socketPath}`, ...exports],
    { stdin: 'ignore', stdout: 'ignore', reject: false },
  );
  await eventually(() => canConnect(backup.socketPath), { intervalMs: 5 });
  return {
    backup,
    stop: async () => {
      server.kill('SIGKILL');
      await server;
    },
  };
}

/** @throws HypervisorError when an image has no bitmap of this name */
async function requireBitmap(
  target: string,
  path: string,
  format: string | undefined,
  name: string,
): Promise<void> {
  if (format === 'qcow2' && (await readImageInfo(path, 'qcow2')).bitmaps.includes(name)) return;
  throw refusal('checkpointInconsistent', `missing or broken bitmap '${name}' for disk '${target}'`);
}

/** What libvirt does at the end of a backup that is not cut off. */
export async function removeTraces({ socketPath, volumes }: PullBackup): Promise<void> {
  await rm(socketPath, { force: true });
  for (const { scratchFile } of volumes) await rm(scratchFile, { force: true });
}

async function canConnect(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
