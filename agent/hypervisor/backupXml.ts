import { DOMImplementation, type Document, type Element } from '@xmldom/xmldom';
import { attribute, child, children, parseDocument, serializeNode } from './domainDom.ts';

/** One volume of a pull-mode backup. */
export interface BackupVolume {
  readonly target: string;
  /** Name of its NBD export. */
  readonly exportName: string;
  /** Takes what the guest overwrites meanwhile; libvirt makes it, so it must not exist, and removes it. */
  readonly scratchFile: string;
  /** Checkpoint since which changes are told, as the dirty bitmap `dirtyContextOf(target)`; without it none are. */
  readonly since?: string | undefined;
}

/** A mark of one instant: from it on QEMU notes in a bitmap of each volume what the guest changes. */
export interface Checkpoint {
  readonly name: string;
  /** Volumes that have a bitmap of its name; only qcow2 can. */
  readonly targets: readonly string[];
}

/** The NBD context of the changes of a volume since a checkpoint. The name of the bitmap is libvirt's own choice. */
export function dirtyContextOf(target: string): string {
  return `qemu:dirty-bitmap:backup-${target}`;
}

/** A pull-mode backup: QEMU serves the volumes, as they were at one instant, over a unix socket. */
export interface PullBackup {
  readonly socketPath: string;
  readonly volumes: readonly BackupVolume[];
}

/**
 * The `<domainbackup>` that starts a pull-mode backup. Every volume of the machine is named, those left out too:
 * libvirt would otherwise decide about them itself. `type='file'` is mandatory beside `exportname`, whatever the
 * volume is (libvirt 9.0).
 */
export function formatBackupXml(backup: PullBackup, leftOut: readonly string[]): string {
  const document = new DOMImplementation().createDocument(null, 'domainbackup', null);
  const root = document.documentElement;
  if (root === null) throw new Error('a new document has a root');
  root.setAttribute('mode', 'pull');
  const server = append(document, root, 'server');
  server.setAttribute('transport', 'unix');
  server.setAttribute('socket', backup.socketPath);
  const disks = append(document, root, 'disks');
  for (const { target, exportName, scratchFile, since } of backup.volumes) {
    const disk = append(document, disks, 'disk');
    disk.setAttribute('name', target);
    disk.setAttribute('backup', 'yes');
    disk.setAttribute('type', 'file');
    disk.setAttribute('exportname', exportName);
    if (since !== undefined) {
      disk.setAttribute('backupmode', 'incremental');
      disk.setAttribute('incremental', since);
      disk.setAttribute('exportbitmap', `backup-${target}`);
    }
    append(document, disk, 'scratch').setAttribute('file', scratchFile);
  }
  for (const target of leftOut) {
    const disk = append(document, disks, 'disk');
    disk.setAttribute('name', target);
    disk.setAttribute('backup', 'no');
  }
  return serializeNode(document);
}

/**
 * What libvirt says of the backup that it has under way; `null` when it is not one over a unix socket.
 * @throws DomainXmlError XML_INVALID
 */
export function parseBackupXml(xml: string): PullBackup | null {
  const root = parseDocument(xml, 'domainbackup').documentElement ?? undefined;
  const socketPath = attribute(child(root, 'server'), 'socket');
  if (socketPath === undefined) return null;
  const volumes = children(child(root, 'disks'), 'disk').flatMap((disk): readonly BackupVolume[] => {
    const target = attribute(disk, 'name');
    const scratchFile = attribute(child(disk, 'scratch'), 'file');
    if (target === undefined || scratchFile === undefined || attribute(disk, 'backup') === 'no') return [];
    const since = attribute(disk, 'incremental');
    const exportName = attribute(disk, 'exportname') ?? target;
    return [{ target, exportName, scratchFile, ...(since === undefined ? {} : { since }) }];
  });
  return { socketPath, volumes };
}

/**
 * The `<domaincheckpoint>` that makes a checkpoint. Every volume of the machine is named, for libvirt would otherwise
 * decide about the others itself.
 */
export function formatCheckpointXml(checkpoint: Checkpoint, leftOut: readonly string[]): string {
  const document = new DOMImplementation().createDocument(null, 'domaincheckpoint', null);
  const root = document.documentElement;
  if (root === null) throw new Error('a new document has a root');
  append(document, root, 'name').appendChild(document.createTextNode(checkpoint.name));
  const disks = append(document, root, 'disks');
  for (const [targets, kind] of [
    [checkpoint.targets, 'bitmap'],
    [leftOut, 'no'],
  ] as const) {
    for (const target of targets) {
      const disk = append(document, disks, 'disk');
      disk.setAttribute('name', target);
      disk.setAttribute('checkpoint', kind);
    }
  }
  return serializeNode(document);
}

/** Which volumes a checkpoint has bitmaps of. @throws DomainXmlError XML_INVALID */
export function parseCheckpointXml(name: string, xml: string): Checkpoint {
  const root = parseDocument(xml, 'domaincheckpoint').documentElement ?? undefined;
  const targets = children(child(root, 'disks'), 'disk').flatMap((disk) => {
    const target = attribute(disk, 'name');
    return target !== undefined && attribute(disk, 'checkpoint') === 'bitmap' ? [target] : [];
  });
  return { name, targets };
}

function append(document: Document, parent: Element, name: string): Element {
  const element = document.createElement(name);
  parent.appendChild(element);
  return element;
}
