import { HypervisorError } from '../errors.ts';
import type { BlockJob } from '../hypervisor.ts';
import { check, outValue, present } from './connection.ts';
import type { Connection } from './connection.ts';
import { libvirt, qemuMonitorCommand, takeList } from './library.ts';
import type { Out, Pointer, RawBlockJobInfo } from './library.ts';
import { blockJobKindOf } from './reasons.ts';

/** `VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES` and `…_REBASE_BANDWIDTH_BYTES`. */
const pullBandwidthBytes = 1 << 6;
/** `VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES` and `…_SPEED_BANDWIDTH_BYTES`. */
const jobBandwidthBytes = 1 << 0;
/** `VIR_DOMAIN_BLOCK_COMMIT_`: ACTIVE | BANDWIDTH_BYTES. */
const commitFlags = (1 << 2) | (1 << 4);
/** `VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT`. */
const abortPivot = 1 << 1;
const monitorHuman = 1 << 0;

/** Volumes, their block jobs, and what libvirt has noted about their past. */
export function volumeOperations(connection: Connection) {
  return {
    pull(uuid: string, target: string, base: string | null, bandwidth: number): void {
      connection.withMachine(uuid, (domain) => {
        if (base === null) {
          check(
            'virDomainBlockPull',
            libvirt.virDomainBlockPull(domain, target, bandwidth, pullBandwidthBytes),
          );
        } else {
          check(
            'virDomainBlockRebase',
            libvirt.virDomainBlockRebase(domain, target, base, bandwidth, pullBandwidthBytes),
          );
        }
      });
    },

    blockJob(uuid: string, target: string): BlockJob | null {
      return connection.withMachine(uuid, (domain) => {
        const info: Partial<RawBlockJobInfo> = {};
        const result = libvirt.virDomainGetBlockJobInfo(domain, target, info, jobBandwidthBytes);
        if (check('virDomainGetBlockJobInfo', result) === 0) return null;
        const kind = blockJobKindOf(info.type ?? 0);
        const currentBytes = Number(info.cur);
        const endBytes = Number(info.end);
        return {
          kind,
          bandwidthBytesPerSecond: Number(info.bandwidth),
          currentBytes,
          endBytes,
          // libvirt keeps the two apart until QEMU says that the job is ready (`qemuBlockJobInfoTranslate`).
          ready: kind === 'active-commit' && currentBytes === endBytes,
        };
      });
    },

    commit(uuid: string, target: string, top: string, base: string, bandwidth: number): void {
      connection.withMachine(uuid, (domain) =>
        check(
          'virDomainBlockCommit',
          libvirt.virDomainBlockCommit(domain, target, base, top, bandwidth, commitFlags),
        ),
      );
    },

    /** Returns when the job is gone. */
    pivot(uuid: string, target: string): void {
      connection.withMachine(uuid, (domain) =>
        check('virDomainBlockJobAbort', libvirt.virDomainBlockJobAbort(domain, target, abortPivot)),
      );
    },

    setBlockJobBandwidth(uuid: string, target: string, bytesPerSecond: number): void {
      connection.withMachine(uuid, (domain) =>
        check(
          'virDomainBlockJobSetSpeed',
          libvirt.virDomainBlockJobSetSpeed(domain, target, bytesPerSecond, jobBandwidthBytes),
        ),
      );
    },

    /** Returns when the job is gone. */
    abortBlockJob(uuid: string, target: string): void {
      connection.withMachine(uuid, (domain) =>
        check('virDomainBlockJobAbort', libvirt.virDomainBlockJobAbort(domain, target, 0)),
      );
    },

    volumeSizeBytes(uuid: string, target: string): number {
      return connection.withMachine(uuid, (domain) => {
        const info: { capacity?: number | bigint } = {};
        check('virDomainGetBlockInfo', libvirt.virDomainGetBlockInfo(domain, target, info, 0));
        return Number(info.capacity);
      });
    },

    snapshotNames(uuid: string): string[] {
      return connection.withMachine(uuid, (domain) => forEachSnapshot(domain, snapshotName));
    },

    /** Without secrets: that is what no flags mean. */
    snapshotDefinitions(uuid: string): { readonly name: string; readonly definition: string }[] {
      return connection.withMachine(uuid, (domain) =>
        forEachSnapshot(domain, (snapshot) => ({
          name: snapshotName(snapshot),
          definition: present(
            'virDomainSnapshotGetXMLDesc',
            libvirt.virDomainSnapshotGetXMLDesc(snapshot, 0),
          ),
        })),
      );
    },

    /**
     * Flushes the images of one volume from the top down, metadata and data (seen: two fdatasync).
     * @param index libvirt's number of the volume's top image (`<source index=…>` of the live definition)
     */
    flushVolume(uuid: string, target: string, index: number): void {
      connection.withMachine(uuid, (domain) => {
        const node = formatNode(domain, index);
        if (node === undefined) {
          throw new HypervisorError('OPERATION_FAILED', `QEMU has no block node for volume ${target}`);
        }
        const answer = monitor(domain, `qemu-io ${node} flush`, monitorHuman);
        // The human monitor has no error numbers: it says nothing when a command has worked.
        if (answer.trim() !== '') {
          throw new HypervisorError('OPERATION_FAILED', `volume ${target} was not flushed: ${answer.trim()}`);
        }
      });
    },
  };
}

/** libvirt names the nodes of its image N `libvirt-N-format` and `libvirt-N-storage` (one of both may be missing). */
function formatNode(domain: Pointer, index: number): string | undefined {
  const command = { execute: 'query-named-block-nodes', arguments: { flat: true } };
  const answer: unknown = JSON.parse(monitor(domain, JSON.stringify(command), 0));
  const names = nodeNames(answer);
  return [`libvirt-${index}-format`, `libvirt-${index}-storage`].find((name) => names.includes(name));
}

function nodeNames(answer: unknown): string[] {
  const nodes: unknown = Reflect.get(Object(answer), 'return');
  if (!Array.isArray(nodes)) return [];
  return nodes.flatMap((node: { readonly 'node-name'?: string }) => node['node-name'] ?? []);
}

function monitor(domain: Pointer, command: string, flags: number): string {
  const result: Out<string> = [null];
  check('virDomainQemuMonitorCommand', qemuMonitorCommand(domain, command, flags, result));
  return outValue(result);
}

function forEachSnapshot<T>(domain: Pointer, use: (snapshot: Pointer) => T): T[] {
  const list: Out<Pointer> = [null];
  const count = check('virDomainListAllSnapshots', libvirt.virDomainListAllSnapshots(domain, list, 0));
  const snapshots = takeList(list, count);
  try {
    return snapshots.map(use);
  } finally {
    for (const snapshot of snapshots) libvirt.virDomainSnapshotFree(snapshot);
  }
}

function snapshotName(snapshot: Pointer): string {
  return present('virDomainSnapshotGetName', libvirt.virDomainSnapshotGetName(snapshot));
}
