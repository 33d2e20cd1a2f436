import { constants, copyFile, lstat, readdir, realpath } from 'node:fs/promises';
import { basename, join } from 'node:path';
import * as z from 'zod';
import { isErrno } from '../../common/errors.ts';
import { exists, fsyncFile, writeFileDurable } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import type { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';

/** Where libvirt lets swtpm keep the state of each machine, by UUID. */
export const swtpmDirectory = '/var/lib/libvirt/swtpm';
/** A kernel with its initial RAM disk is smaller; what is larger is no part of a machine. */
const bootFileBytesMax = 256 * 1024 * 1024;

/** Something that belongs to a machine, beside its volumes, memory and definition, and is stored with them. */
export const plannedExtraSchema = z.discriminatedUnion('kind', [
  z.object({
    kind: z.enum(['kernel', 'initrd', 'dtb', 'loader', 'tpm']),
    source: z.string(),
    /** Tells several of one kind apart. */
    label: z.string(),
    /** Its copy in a work directory. */
    file: z.string(),
  }),
  z.object({
    kind: z.enum(['network', 'pool', 'snapshot']),
    /** Name of the network, pool or snapshot. */
    label: z.string(),
    file: z.string(),
  }),
]);

export type PlannedExtra = z.infer<typeof plannedExtraSchema>;

/** What a plan tells of the extras of its machine. */
export interface ExtrasPlan {
  readonly machine: { readonly uuid: string };
  readonly extras: readonly PlannedExtra[];
}

/** What a look for the extras of a machine has found. */
export interface PlannedExtras {
  readonly extras: readonly PlannedExtra[];
  /** Bytes of the files that the machine starts with, whose copies stand beside its first image until they are stored. */
  readonly sizeBytes: number;
  readonly warnings: readonly string[];
}

/**
 * Finds what belongs to a machine: the files that it starts with, as they are, and the definitions of the networks
 * and storage pools that it uses, so that a host can be built again.
 * @param snapshots names of its libvirt snapshots, whose definitions are kept for information
 */
export async function planExtras(
  definition: DomainXml,
  workDirectory: string,
  snapshots: readonly string[] = [],
  tpmDirectory = swtpmDirectory,
): Promise<PlannedExtras> {
  const extras: PlannedExtra[] = [];
  const warnings: string[] = [];
  let sizeBytes = 0;
  const fileOf = (kind: string): string => join(workDirectory, `extra-${extras.length}-${kind}`);
  for (const { kind, path } of definition.bootFiles) {
    const found = await examineBootFile(path);
    if (typeof found === 'number') {
      extras.push({ kind, source: path, label: kind, file: fileOf(kind) });
      sizeBytes += found;
    } else warnings.push(`the ${kind} ${path} is not part of the backup: ${found}`);
  }
  const networks = definition.interfaces.flatMap(({ type, source }) =>
    type === 'network' && source !== undefined ? [source] : [],
  );
  const pools = definition.volumes.flatMap(({ pool }) => (pool === undefined ? [] : [pool.name]));
  for (const source of await tpmFilesOf(definition, tpmDirectory))
    extras.push({ kind: 'tpm', source, label: basename(source), file: fileOf('tpm') });
  for (const [kind, names] of [
    ['network', networks],
    ['pool', pools],
    ['snapshot', snapshots],
  ] as const)
    for (const label of new Set(names)) extras.push({ kind, label, file: fileOf(kind) });
  return { extras, sizeBytes, warnings };
}

/** What an emulated TPM keeps on the disk; a machine that has never run has nothing yet. */
async function tpmFilesOf(definition: DomainXml, directory: string): Promise<readonly string[]> {
  if (definition.tpm?.backend !== 'emulator') return [];
  const files: string[] = [];
  for (const version of ['tpm2', 'tpm1.2']) {
    const state = join(directory, definition.uuid, version);
    if (!(await exists(state))) continue;
    const entries = await readdir(state, { withFileTypes: true });
    // A lock is of no use elsewhere, what begins with TMP is about to be renamed, and the volatile state comes and goes
    // with a running TPM: it is part of the memory.
    for (const entry of entries)
      if (entry.isFile() && !/^\.|^TMP|volatilestate$/.test(entry.name)) files.push(join(state, entry.name));
  }
  return files;
}

/** Its size in bytes, or why it cannot be stored. */
async function examineBootFile(path: string): Promise<number | string> {
  try {
    const file = await lstat(await realpath(path));
    if (!file.isFile()) return 'it is not a file';
    if (file.size > bootFileBytesMax) return `it has more than ${formatBytes(bootFileBytesMax)}`;
    return file.size;
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR') || isErrno(error, 'EACCES'))
      return 'it cannot be found';
    throw error;
  }
}

/**
 * Puts the extras of a plan into its work directory. May be started again after a crash.
 * @throws SnapshotError MACHINE_INTERFERED for what has gone since the plan was made; HypervisorError
 */
export async function gatherExtras(hypervisor: Hypervisor, plan: ExtrasPlan): Promise<void> {
  const definitions = new Definitions(hypervisor, plan.machine.uuid);
  for (const extra of plan.extras) {
    if (extra.kind === 'tpm') continue;
    if ('source' in extra) {
      await copyFile(extra.source, extra.file, constants.COPYFILE_FICLONE);
      await fsyncFile(extra.file);
    } else {
      await writeFileDurable(extra.file, await definitions.find(extra.kind, extra.label), { mode: 0o600 });
    }
  }
}

/**
 * Copies the state that a TPM has on the disk, at T1 or right after it: swtpm replaces its files whole. Of a machine
 * with memory the TPM's state is in that, too, and is the one that counts when it is resumed.
 */
export async function copyTpmState(plan: Pick<ExtrasPlan, 'extras'>): Promise<void> {
  for (const extra of plan.extras) {
    if (extra.kind !== 'tpm') continue;
    await copyFile(extra.source, extra.file);
    await fsyncFile(extra.file);
  }
}

/** Definitions beside that of the machine; libvirt is asked for each kind once, and only if there is a need. */
class Definitions {
  readonly #hypervisor: Hypervisor;
  readonly #uuid: string;
  #host: ReturnType<Hypervisor['hostDefinitions']> | undefined;
  #snapshots: ReturnType<Hypervisor['snapshotDefinitions']> | undefined;

  constructor(hypervisor: Hypervisor, uuid: string) {
    this.#hypervisor = hypervisor;
    this.#uuid = uuid;
  }

  /** @throws SnapshotError MACHINE_INTERFERED */
  async find(kind: 'network' | 'pool' | 'snapshot', name: string): Promise<string> {
    const found =
      kind === 'snapshot'
        ? (await (this.#snapshots ??= this.#hypervisor.snapshotDefinitions(this.#uuid))).find(
            (one) => one.name === name,
          )
        : (await (this.#host ??= this.#hypervisor.hostDefinitions())).find(
            (one) => one.kind === kind && one.name === name,
          );
    if (found !== undefined) return found.definition;
    throw new SnapshotError('MACHINE_INTERFERED', `the ${kind} ${name} is not there any more`, {
      hint: 'nothing was changed; start the backup again',
      retryable: true,
    });
  }
}
