import { createHash } from 'node:crypto';
import { stringify } from 'yaml';
import { newId } from '../common/ids.ts';
import { writerName } from '../common/version.ts';
import type { Config } from '../config/schema.ts';
import { type HostItem, type HostManifest, hostManifestVersion } from '../storage/hostManifest.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { unlessGone } from './hypervisor/unlessGone.ts';
import { publicDefinition } from './snapshot/save.ts';

/** The definitions of a host, ready to be stored. */
export interface HostBackup {
  readonly manifest: HostManifest;
  /** By file name. */
  readonly files: ReadonlyMap<string, string>;
}

/**
 * Gathers what a host needs to be built again, beside the disks of its machines: every definition that libvirt has,
 * and the agent's configuration. No secret is in it: machines' passwords are taken out, of libvirt's secrets there is
 * the definition and never the value, and the configuration names files that hold secrets, but not what is in them.
 * @throws HypervisorError
 */
export async function gatherHost(hypervisor: Hypervisor, config: Config): Promise<HostBackup> {
  const files = new Map<string, string>();
  const items: HostItem[] = [];
  const add = (
    item: Pick<HostItem, 'kind' | 'name' | 'uuid' | 'autostart'>,
    ending: string,
    text: string,
  ): void => {
    // Names can hold anything; UUIDs tell what they are of, and are unique.
    const file = `${item.kind}-${item.uuid ?? item.name}.${ending}`;
    const sha256 = createHash('sha256').update(text).digest('hex');
    items.push({ ...item, file, sizeBytes: Buffer.byteLength(text), sha256 });
    files.set(file, text);
  };
  for (const { uuid, name, persistent, autostart } of await hypervisor.machines()) {
    // Of a transient machine there is nothing to define again.
    if (!persistent) continue;
    const definition = await unlessGone(publicDefinition(hypervisor, uuid));
    if (definition !== undefined) add({ kind: 'machine', name, uuid, autostart }, 'xml', definition);
  }
  for (const { kind, name, uuid, definition, autostart } of await hypervisor.hostDefinitions())
    add({ kind, name, uuid, ...(autostart === null ? {} : { autostart }) }, 'xml', definition);
  add({ kind: 'configuration', name: 'stillpoint' }, 'yaml', stringify(config));
  const host = await hypervisor.hostInfo();
  return {
    files,
    manifest: {
      formatVersion: hostManifestVersion,
      kind: 'host',
      id: newId(),
      writer: writerName,
      host: { name: host.hostName, libvirt: host.libvirtVersion, qemu: host.qemuVersion },
      pointInTime: new Date().toISOString(),
      items,
    },
  };
}
