import { constants, copyFile, lstat, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { isErrno } from '../../common/errors.ts';
import { fsyncFile, writeFileDurable } from '../../common/files.ts';
import { formatBytes } from '../../common/units.ts';
import type { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';

/** A kernel with its initial RAM disk is smaller; what is larger is no part of a machine. */
const bootFileBytesMax = 256 * 1024 * 1024;

/** Something that belongs to a machine, beside its volumes, memory and definition, and is stored with them. */
export const plannedExtraSchema = z.discriminatedUnion('kind', [
  z.object({
    kind: z.enum(['kernel', 'initrd', 'dtb', 'loader']),
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

/**
 * Finds what belongs to a machine: the files that it starts with, as they are, and the definitions of the networks
 * and storage pools that it uses, so that a host can be built again.
 * @param snapshots names of its libvirt snapshots, whose definitions are kept for information
 */
export async function planExtras(
  definition: DomainXml,
  workDirectory: string,
  snapshots: readonly string[] = [],
): Promise<{ readonly extras: readonly PlannedExtra[]; readonly warnings: readonly string[] }> {
  const extras: PlannedExtra[] = [];
  const warnings: string[] = [];
  const fileOf = (kind: string): string => join(workDirectory, `extra-${extras.length}-${kind}`);
  for (const { kind, path } of definition.bootFiles) {
    const why = await whyNotStored(path);
    if (why === null) extras.push({ kind, source: path, label: kind, file: fileOf(kind) });
    else warnings.push(`the ${kind} ${path} is not part of the backup: ${why}`);
  }
  const networks = definition.interfaces.flatMap(({ type, source }) =>
    type === 'network' && source !== undefined ? [source] : [],
  );
  const pools = definition.volumes.flatMap(({ pool }) => (pool === undefined ? [] : [pool.name]));
  for (const [kind, names] of [
    ['network', networks],
    ['pool', pools],
    ['snapshot', snapshots],
  ] as const)
    for (const label of new Set(names)) extras.push({ kind, label, file: fileOf(kind) });
  return { extras, warnings };
}

async function whyNotStored(path: string): Promise<string | null> {
  try {
    const file = await lstat(await realpath(path));
    if (!file.isFile()) return 'it is not a file';
    if (file.size > bootFileBytesMax) return `it has more than ${formatBytes(bootFileBytesMax)}`;
    return null;
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
    if ('source' in extra) {
      await copyFile(extra.source, extra.file, constants.COPYFILE_FICLONE);
      await fsyncFile(extra.file);
    } else {
      await writeFileDurable(extra.file, await definitions.find(extra.kind, extra.label), { mode: 0o600 });
    }
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
