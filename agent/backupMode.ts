import type { ResolvedPolicy } from '../config/policy.ts';
import { formatBytes } from '../common/units.ts';
import type { BackupEntry, Storage } from '../storage/storage.ts';
import { DomainXml } from './hypervisor/domainXml.ts';
import type { Hypervisor, MachineStatus } from './hypervisor/hypervisor.ts';
import { SnapshotError, type SnapshotErrorCode } from './snapshot/errors.ts';

/** How T1 is made, with `auto` decided. */
export type Mode = 'save' | 'live' | 'disk' | 'offline';

/** What `auto` is decided from. */
export interface AutoQuestion {
  readonly machine: { readonly uuid: string; readonly status: MachineStatus };
  readonly policy: Pick<ResolvedPolicy, 'name' | 'memory' | 'memoryMaxBytes'>;
  readonly hypervisor: Hypervisor;
  /** Those that the backup goes to. */
  readonly storages: readonly Storage[];
  /** Plans a backup with memory; rejects with why the machine cannot be backed up so. */
  readonly tryMode: (mode: 'save' | 'live') => Promise<unknown>;
}

export interface DecidedMode {
  readonly mode: Mode;
  readonly modeReason: string;
}

/** How the reason begins of what `decideAuto` has decided. */
const decidedByAuto = 'auto: ';

/** Whether a mode was decided by `decideAuto`; of a job that is written down there is the reason alone. */
export function isDecidedByAuto(modeReason: string): boolean {
  return modeReason.startsWith(decidedByAuto);
}

/** What a mode with memory refuses a machine for as it is; anything else is an obstacle that passes, and is told. */
const kindsRefused: ReadonlySet<string> = new Set<SnapshotErrorCode>([
  'MACHINE_TRANSIENT',
  'MACHINE_STATE_UNSUITABLE',
  'HOST_DEVICE_UNSUPPORTED',
  'TPM_UNSUPPORTED',
  'VOLUME_UNSUPPORTED',
  'VOLUME_RAW',
  'VOLUME_SHARED',
  'VOLUME_ENCRYPTED',
  'INTERNAL_SNAPSHOTS',
  'CHECKPOINTS_PRESENT',
  'RELATIVE_BACKING',
]);

/**
 * Decides `auto`: `offline` for a machine that is off, `disk` for one that runs, `live` where its policy asks for the
 * memory, `save` where `live` cannot. Where neither can, the disks are better than nothing, and the reason says so.
 */
export async function decideAuto(question: AutoQuestion): Promise<DecidedMode> {
  const { machine, policy } = question;
  const { state } = machine.status;
  if (state === 'shut-off' || state === 'crashed')
    return { mode: 'offline', modeReason: `${decidedByAuto}the machine is off` };
  const disk = (why: string): DecidedMode => ({ mode: 'disk', modeReason: `${decidedByAuto}${why}` });
  if (policy.memory === 'never') return disk('the machine runs, and its policy asks for no memory');
  const due = await memoryDue(question);
  if (due !== null) return disk(due);
  const asked = `policy ${policy.name} asks for the memory`;
  const tooLarge = await memoryTooLarge(question);
  if (tooLarge !== null) return disk(`${asked}, but ${tooLarge}`);
  const live = await refusalOf(() => question.tryMode('live'));
  if (live === null) return { mode: 'live', modeReason: `${decidedByAuto}${asked}` };
  const save = await refusalOf(() => question.tryMode('save'));
  if (save === null)
    return { mode: 'save', modeReason: `${decidedByAuto}${asked}, and mode live cannot: ${live}` };
  return disk(`${asked}, but neither live (${live}) nor save (${save}) can`);
}

/** Why no memory is due yet; `null`: it is. Each storage must hold one among its newest backups. */
async function memoryDue({ machine, policy, storages }: AutoQuestion): Promise<string | null> {
  if (typeof policy.memory === 'string') return null;
  const { every } = policy.memory;
  let fewest = Infinity;
  for (const storage of storages) {
    const entries = await storage.list({ machine: machine.uuid });
    fewest = Math.min(fewest, every - 1 - backupsSinceMemory(entries));
  }
  if (fewest <= 0) return null;
  return `policy ${policy.name} asks for the memory in every ${every}. backup, ${fewest} more without it come first`;
}

/** How many good backups came after the last one with a memory state; `Infinity` when there is none. */
function backupsSinceMemory(entries: readonly BackupEntry[]): number {
  const newestFirst = entries
    .filter(({ state }) => state === 'Active')
    .toSorted((a, b) => b.pointInTime.localeCompare(a.pointInTime));
  const index = newestFirst.findIndex(({ manifest }) => manifest?.memory !== undefined);
  return index === -1 ? Infinity : index;
}

async function memoryTooLarge({ hypervisor, machine, policy }: AutoQuestion): Promise<string | null> {
  const { memoryMaxBytes } = policy;
  if (memoryMaxBytes === null) return null;
  const { memoryBytes } = DomainXml.parse(await hypervisor.definition(machine.uuid, 'live'));
  if (memoryBytes <= memoryMaxBytes) return null;
  return `it has ${formatBytes(memoryBytes)}, more than memoryMaxBytes allows (${formatBytes(memoryMaxBytes)})`;
}

/** Why a mode cannot do this kind of machine; `null` when it can, or fails for a reason that the job will tell. */
async function refusalOf(plan: () => Promise<unknown>): Promise<string | null> {
  try {
    await plan();
    return null;
  } catch (error) {
    if (!(error instanceof SnapshotError)) throw error;
    return kindsRefused.has(error.code) && !error.retryable ? error.message : null;
  }
}
