import type { Circumstances } from '../../agent/backup/decide.ts';
import type { BackupFacts } from '../../agent/backup/facts.ts';
import type { VolumeWorld, World } from '../../agent/backup/world.ts';
import type { PlannedVolume } from '../../agent/snapshot/plan.ts';

/* Facts and worlds for tests of what recovery decides: a machine `m` with two volumes, prepared for its backup. */

function planned(target: string): PlannedVolume {
  const path = (name: string): string => `/images/${name}`;
  return {
    target,
    image: path(target),
    file: path(target),
    frozen: path(`${target}.frozen`),
    overlay: path(`${target}.overlay`),
    workDirectory: '/images/.stillpoint/job',
    base: null,
    chain: [path(target)],
    virtualSizeBytes: 1,
    layout: [],
    owner: null,
    allocatedBytes: 1,
    keepsBitmaps: true,
  };
}

export function factsWith(changes: Partial<BackupFacts> = {}): BackupFacts {
  return {
    backupId: '01a1fa1b-a048-702f-a832-3f1deebf16d6',
    machine: { uuid: 'u', name: 'm' },
    settings: {
      mode: 'save',
      modeReason: '',
      storages: ['local'],
      storageChoices: [],
      retainDirectory: null,
      ramDisk: null,
      runDirectory: '/run/stillpoint',
      hooks: {},
      monitoringMarker: false,
      mergeBandwidthBytesPerSecond: 0,
      readBandwidthBytesPerSecond: 0,
      includeSharedBase: false,
      saveDeadlineMs: 1,
      restoreDeadlineMs: 1,
      mergeDeadlineMs: 1,
      retainDeadlineMs: 1,
      labels: {},
      incremental: true,
    },
    bootId: 'boot',
    plan: {
      machine: { uuid: 'u', name: 'm' },
      host: { name: 'h', libvirt: '9', qemu: '7' },
      mode: 'save',
      modeReason: '',
      memoryBytes: 1,
      stateFile: '/state',
      stateOnRamDisk: false,
      stowedStateFile: null,
      nvram: null,
      extras: [],
      checkpoint: null,
      volumes: [planned('vda'), planned('vdb')],
      workDirectories: [],
      warnings: [],
    },
    before: { running: true, autostart: true, definitionCut: false },
    prepared: true,
    warnings: [],
    ...changes,
  };
}

export function volumeWith(changes: Partial<VolumeWorld> = {}): VolumeWorld {
  return {
    target: 'vda',
    image: 'original',
    header: undefined,
    chain: undefined,
    written: false,
    lockedBy: undefined,
    ...changes,
  };
}

export const overlay = { image: 'swapped', header: 'on-frozen' } as const;

export function worldWith(
  changes: Partial<Omit<World, 'volumes'>> & {
    readonly both?: Partial<VolumeWorld>;
    readonly volumes?: readonly VolumeWorld[];
  } = {},
): World {
  const { both = {}, ...rest } = changes;
  const volumes = ['vda', 'vdb'].map((target) => volumeWith({ ...both, target }));
  const running: World['status'] = { state: 'running', reason: 'booted' };
  return { machine: 'active', status: running, runId: '1', busy: false, state: 'absent', volumes, ...rest };
}

export const calm: Circumstances = { attempts: new Map(), rebooted: false, mergeIncomplete: false };

export function off(reason: string): Pick<World, 'machine' | 'status' | 'runId'> {
  return { machine: 'off', status: { state: 'shut-off', reason }, runId: undefined };
}
