import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import { freeBytes } from '../../common/files.ts';
import { newId } from '../../common/ids.ts';
import { formatBytes } from '../../common/units.ts';
import { nvramOf } from '../../storage/manifest.ts';
import type { BackupEntry, StoredFiles } from '../../storage/storage.ts';
import { nbdUrl } from '../hypervisor/domainDisk.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { RestoreError } from './errors.ts';
import { requireInstant } from './instantPlan.ts';
import { servedStreamSchema } from './plan.ts';

const artifact = z.object({ path: z.string(), sizeBytes: z.number(), sha256: z.string() });

/** How a backup is started in isolation; kept in the journal. */
export const bootPlanSchema = z.object({
  jobId: z.string(),
  backup: z.object({ id: z.string(), storage: z.string(), directory: z.string(), pointInTime: z.string() }),
  machine: z.object({ name: z.string(), uuid: z.string() }),
  start: z.enum(['resume', 'boot']),
  /** Everything that is made stands in it, but the sockets. */
  directory: z.string(),
  sockets: z.string(),
  volumes: z.array(
    z.object({
      target: z.string(),
      artifact: z.string(),
      repository: servedStreamSchema.nullable().default(null),
      format: z.enum(['qcow2', 'raw']),
      virtualSizeBytes: z.number(),
      socket: z.string(),
      url: z.string(),
      overlay: z.string(),
    }),
  ),
  memory: z.object({ artifact, staged: z.string() }).nullable(),
  nvram: z.object({ artifact, path: z.string() }).nullable(),
  definition: z.object({ path: z.string(), sha256: z.string() }),
  serialLog: z.string(),
  /** What must appear on the serial port; otherwise the guest agent or the screen tells. */
  expect: z.string().nullable(),
  deadlineMs: z.number(),
});

export type BootPlan = z.infer<typeof bootPlanSchema>;

/** What a verification by starting knows; facts are only added. */
export const bootFactsSchema = z.object({
  plan: bootPlanSchema,
  restoreDeadlineMs: z.number(),
  result: z
    .object({
      at: z.string(),
      ok: z.boolean(),
      start: z.enum(['resume', 'boot']),
      evidence: z.enum(['serial', 'agent', 'screen']).nullable(),
      detail: z.string(),
      durationMs: z.number(),
    })
    .optional(),
  picture: z.string().nullable().optional(),
});

export type BootFacts = z.infer<typeof bootFactsSchema>;

export interface BootRequest {
  readonly start?: 'resume' | 'boot' | undefined;
  readonly expect?: string | undefined;
  readonly deadlineMs: number;
  /** Where overlays and the memory state stand meanwhile. */
  readonly workDirectory: string;
  readonly runDirectory: string;
  /** How the artifacts of the backup's storage are read. */
  readonly stored: StoredFiles;
  /** File of the configuration, for what serves a backup that is not kept as files; `null` where it is. */
  readonly config: string | null;
}

/** Room for what the guest writes while it is watched. */
const overlayBytes = 256 * 1024 * 1024;

/**
 * Plans to start a backup where it can reach nothing. Changes nothing.
 * @throws RestoreError INSTANT_UNSUPPORTED, ISOLATION_IMPOSSIBLE, NOTHING_TO_SEE, NOT_ENOUGH_DISK_SPACE, …
 */
export async function planBoot(entry: BackupEntry, request: BootRequest): Promise<BootPlan> {
  const { manifest } = entry;
  if (manifest === null || entry.state !== 'Active')
    throw new RestoreError('BACKUP_DAMAGED', `${entry.directory} cannot be started: ${entry.problem ?? ''}`, {
      hint: `stillpoint list ${entry.machine.name}`,
    });
  const start = request.start ?? (manifest.memory === undefined ? 'boot' : 'resume');
  if (start === 'resume' && manifest.memory === undefined)
    throw new RestoreError('NO_MEMORY_STATE', 'the backup holds no memory state', { hint: '--start boot' });
  const { config, stored } = request;
  await requireInstant(entry, manifest, { kind: 'new-machine', scope: 'machine', start }, config === null);
  const jobId = newId();
  const directory = join(request.workDirectory, `stillpoint-verify-${jobId}`);
  const sockets = join(request.runDirectory, jobId);
  const at = (file: string): string => join(entry.directory, file);
  const nvram = nvramOf(manifest);
  const plan: BootPlan = {
    jobId,
    backup: {
      id: manifest.id,
      storage: entry.storage,
      directory: entry.directory,
      pointInTime: manifest.pointInTime,
    },
    machine: { name: `stillpoint-verify-${jobId}`, uuid: randomUUID() },
    start,
    directory,
    sockets,
    volumes: manifest.volumes.map(({ target, file, format, virtualSizeBytes, sha256 }) => {
      const socket = join(sockets, target);
      const overlay = join(directory, `${target}.overlay`);
      return {
        target,
        artifact: at(file),
        repository: config === null ? null : { config, storage: entry.storage, root: sha256 },
        format,
        virtualSizeBytes,
        socket,
        url: nbdUrl(target, socket),
        overlay,
      };
    }),
    memory:
      start === 'boot' || manifest.memory === undefined
        ? null
        : {
            artifact: { ...manifest.memory, path: at(manifest.memory.file) },
            staged: join(directory, 'memory.state'),
          },
    nvram:
      nvram === undefined
        ? null
        : { artifact: { ...nvram, path: at(nvram.file) }, path: join(directory, 'nvram') },
    definition: { path: at(manifest.definition.file), sha256: manifest.definition.sha256 },
    serialLog: join(directory, 'serial.log'),
    expect: request.expect ?? null,
    deadlineMs: request.deadlineMs,
  };
  requireSigns(plan, DomainXml.parse(isolatedDefinition(plan, await stored.readText(plan.definition))));
  await requireRoom(plan, request.workDirectory);
  return plan;
}

/**
 * The definition of a machine that reaches nothing but overlays over a backup.
 * @throws RestoreError ISOLATION_IMPOSSIBLE
 */
export function isolatedDefinition(plan: BootPlan, original: string): string {
  const definition = DomainXml.parse(original);
  definition.removeBackingStores();
  // The guest may know its cards by their addresses; nobody else sees them.
  const macs = definition.interfaces.map(({ mac }, index) => mac ?? `52:54:00:00:00:0${index % 10}`);
  definition.prepareForNewMachine({ ...plan.machine, macs });
  const targets = plan.volumes.map(({ target }) => target);
  const open = definition.isolate(targets, plan.serialLog);
  if (open.length > 0)
    throw new RestoreError('ISOLATION_IMPOSSIBLE', `the machine cannot be kept apart: ${open.join('; ')}`, {
      hint: 'verify --data compares every byte; restore with --as NAME, and look at what it reaches first',
    });
  for (const { target, overlay } of plan.volumes) definition.setVolumePath(target, overlay, 'qcow2');
  if (plan.nvram !== null) definition.setNvram(plan.nvram.path);
  return definition.toString();
}

/** @throws RestoreError NOTHING_TO_SEE */
function requireSigns({ expect, backup }: BootPlan, definition: DomainXml): void {
  if (expect !== null || definition.hasScreen || definition.guestAgent !== undefined) return;
  throw new RestoreError(
    'NOTHING_TO_SEE',
    'the machine has no guest agent and no screen that would tell whether it works',
    {
      hint: `stillpoint verify ${backup.id} --boot --expect TEXT waits for a text on its serial port`,
    },
  );
}

async function requireRoom(plan: BootPlan, directory: string): Promise<void> {
  const needed = overlayBytes + (plan.memory?.artifact.sizeBytes ?? 0);
  const free = await freeBytes(directory);
  if (free >= needed) return;
  throw new RestoreError(
    'NOT_ENOUGH_DISK_SPACE',
    `${directory} has ${formatBytes(free)} free; the verification needs ${formatBytes(needed)}`,
    { hint: `df -h ${directory}` },
  );
}
