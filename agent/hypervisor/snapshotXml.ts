import { DOMImplementation } from '@xmldom/xmldom';
import { appendElement, serializeNode } from './domainDom.ts';
import type { LiveSnapshotOptions } from './hypervisor.ts';

/**
 * The `<domainsnapshot>` of a snapshot with memory. Every disk is named, those left out too: with none named libvirt
 * would also take a floppy.
 */
export function formatSnapshotXml(
  { memoryFile, overlays }: Pick<LiveSnapshotOptions, 'memoryFile' | 'overlays'>,
  leftOut: readonly string[],
): string {
  const document = new DOMImplementation().createDocument(null, 'domainsnapshot', null);
  const root = document.documentElement;
  if (root === null) throw new Error('a new document has a root');
  const memory = appendElement(root, 'memory');
  memory.setAttribute('snapshot', 'external');
  memory.setAttribute('file', memoryFile);
  const disks = appendElement(root, 'disks');
  for (const { target, overlay } of overlays) {
    const disk = appendElement(disks, 'disk');
    disk.setAttribute('name', target);
    disk.setAttribute('snapshot', 'external');
    disk.setAttribute('type', 'file');
    appendElement(disk, 'driver').setAttribute('type', 'qcow2');
    appendElement(disk, 'source').setAttribute('file', overlay);
  }
  for (const target of leftOut) {
    const disk = appendElement(disks, 'disk');
    disk.setAttribute('name', target);
    disk.setAttribute('snapshot', 'no');
  }
  return serializeNode(document);
}
