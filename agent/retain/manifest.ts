import { manifestFormatVersion, type Manifest } from '../../storage/manifest.ts';
import { writerName } from '../../common/version.ts';
import type { Freeze } from '../snapshot/freeze.ts';
import type { SavePlan } from '../snapshot/plan.ts';
import { type ArtifactNames, extraFilesOf, type Retained } from './retain.ts';
import type { ReadPlan, ReadVolume, VolumeRead } from '../snapshot/readPlan.ts';

/** What a manifest says that is neither in the plan nor in the files. */
export interface FrozenPoint {
  readonly backupId: string;
  readonly pointInTime: string;
  readonly pauseMs: number | null;
  readonly running: boolean;
  readonly autostart: boolean;
  readonly steps: Manifest['steps'];
  readonly labels: Manifest['labels'];
  /** The machines whose backups have the same T1. */
  readonly group?: Manifest['group'];
}

/** What a manifest says of a backup that read volumes where they were. */
export interface ReadPoint extends Omit<FrozenPoint, 'running'> {
  /** What came of a freeze of the guest; `undefined` in mode `offline`. */
  readonly freeze: Freeze | undefined;
  readonly virtualSizeBytes: Readonly<Record<string, number>>;
}

/** Describes a retained `disk` or `offline` backup. */
export function describeReadBackup(
  plan: ReadPlan,
  point: ReadPoint,
  names: ArtifactNames,
  storage: string,
  retained: Retained,
): Manifest {
  const file = (name: string): Retained[string] => found(retained, name);
  return {
    formatVersion: manifestFormatVersion,
    id: point.backupId,
    writer: writerName,
    machine: plan.machine,
    host: plan.host,
    pointInTime: point.pointInTime,
    mode: plan.mode,
    modeReason: plan.modeReason,
    ...(plan.checkpoint === null ? {} : { checkpoint: plan.checkpoint }),
    consistency: point.freeze?.consistency ?? plan.consistency,
    ...(point.freeze === undefined ? {} : { consistencyReason: point.freeze.consistencyReason }),
    pauseMs: point.pauseMs,
    ...(point.group === undefined ? {} : { group: point.group }),
    ...(typeof point.freeze?.freezeMs === 'number' ? { freezeMs: point.freeze.freezeMs } : {}),
    volumes: plan.volumes.map((volume) => {
      const name = names.volume(volume.target, 'qcow2');
      const { sizeBytes, sha256, owner } = file(name);
      return {
        target: volume.target,
        file: name,
        format: 'qcow2',
        virtualSizeBytes: point.virtualSizeBytes[volume.target] ?? volume.virtualSizeBytes,
        storedBytes: sizeBytes,
        sha256,
        ...(volume.kind === 'file' ? {} : { kind: volume.kind }),
        ...(volume.encrypted ? { encrypted: true as const } : {}),
        source: volume.image,
        owner,
        ...howRead(volume.reads[storage]),
      };
    }),
    definition: { file: names.definition, sha256: file(names.definition).sha256, autostart: point.autostart },
    extras: describeExtras(plan, names, file),
    steps: point.steps,
    labels: point.labels,
  };
}

function describeExtras(
  plan: Pick<SavePlan, 'nvram' | 'extras'>,
  names: ArtifactNames,
  file: (name: string) => Retained[string],
): Manifest['extras'] {
  return extraFilesOf(plan, names).map(({ name, about }) => {
    const { sizeBytes, sha256 } = file(name);
    return { ...about, file: name, sizeBytes, sha256 };
  });
}

function howRead(
  read: VolumeRead | undefined,
): Pick<Manifest['volumes'][number], 'read' | 'parent' | 'reason'> {
  if (read === undefined) return { read: 'full' };
  return 'parent' in read
    ? { read: 'increment', parent: read.parent }
    : { read: 'full', reason: read.reason };
}

function found(retained: Retained, name: string): Retained[string] {
  const stored = retained[name];
  if (stored === undefined) throw new Error(`${name} was not retained`);
  return stored;
}

/** What a plan of a backup with memory must say. */
export type DescribedPlan = Pick<SavePlan, 'machine' | 'host' | 'modeReason' | 'nvram' | 'extras'> & {
  readonly mode: 'save' | 'live';
  readonly checkpoint: string | null;
  readonly volumes: readonly (Pick<SavePlan['volumes'][number], 'target' | 'virtualSizeBytes' | 'image'> & {
    readonly reads?: ReadVolume['reads'];
  })[];
};

/** Describes a retained backup with memory. */
export function describeBackup(
  plan: DescribedPlan,
  point: FrozenPoint,
  names: ArtifactNames,
  storage: string,
  retained: Retained,
): Manifest {
  const file = (name: string): Retained[string] => found(retained, name);
  const memory = file(names.memory);
  return {
    formatVersion: manifestFormatVersion,
    id: point.backupId,
    writer: writerName,
    machine: plan.machine,
    host: plan.host,
    pointInTime: point.pointInTime,
    mode: plan.mode,
    modeReason: plan.modeReason,
    ...(plan.checkpoint === null ? {} : { checkpoint: plan.checkpoint }),
    consistency: 'memory',
    pauseMs: point.pauseMs,
    ...(point.group === undefined ? {} : { group: point.group }),
    volumes: plan.volumes.map((volume) => {
      const stored = file(names.volume(volume.target, 'qcow2'));
      return {
        target: volume.target,
        file: names.volume(volume.target, 'qcow2'),
        format: 'qcow2',
        virtualSizeBytes: volume.virtualSizeBytes,
        storedBytes: stored.sizeBytes,
        sha256: stored.sha256,
        source: volume.image,
        owner: stored.owner,
        ...howRead(volume.reads?.[storage]),
      };
    }),
    memory: {
      file: names.memory,
      sizeBytes: memory.sizeBytes,
      sha256: memory.sha256,
      running: point.running,
    },
    definition: { file: names.definition, sha256: file(names.definition).sha256, autostart: point.autostart },
    extras: describeExtras(plan, names, file),
    steps: point.steps,
    labels: point.labels,
  };
}
