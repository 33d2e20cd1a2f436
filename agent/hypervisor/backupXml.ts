import { DOMImplementation, type Document, type Element } from '@xmldom/xmldom';
import { attribute, child, children, parseDocument, serializeNode } from './domainDom.ts';

/** One volume of a pull-mode backup. */
export interface BackupVolume {
  readonly target: string;
  /** Name of its NBD export. */
  readonly exportName: string;
  /** Takes what the guest overwrites meanwhile; libvirt makes it, so it must not exist, and removes it. */
  readonly scratchFile: string;
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
  for (const { target, exportName, scratchFile } of backup.volumes) {
    const disk = append(document, disks, 'disk');
    disk.setAttribute('name', target);
    disk.setAttribute('backup', 'yes');
    disk.setAttribute('type', 'file');
    disk.setAttribute('exportname', exportName);
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
    return [{ target, exportName: attribute(disk, 'exportname') ?? target, scratchFile }];
  });
  return { socketPath, volumes };
}

function append(document: Document, parent: Element, name: string): Element {
  const element = document.createElement(name);
  parent.appendChild(element);
  return element;
}
