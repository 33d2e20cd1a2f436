import t from 'tap';

import { decideLive, type LiveRepair } from './liveDecide.ts';
import type { LiveFacts } from './liveFacts.ts';
import type { LiveVolumeWorld, LiveWorld } from './liveWorld.ts';

const plan: NonNullable<LiveFacts['plan']> = {
  machine: { uuid: 'u', name: 'm' },
  host: { name: 'h', libvirt: '9', qemu: '7' },
  mode: 'live',
  modeReason: '',
  memoryBytes: 2,
  convergeBytes: 1,
  checkpoint: null,
  stateFile: '/state',
  stateOnRamDisk: false,
  stowedStateFile: null,
  nvram: null,
  extras: [],
  volumes: [],
  workDirectories: ['/images/.stillpoint/job'],
  warnings: [],
};

const group = { id: '01a1fa1b-a048-702f-a832-3f1deebf16d7', machines: ['m', 'n'] };
const error = { code: 'OVERLAY_FULL', message: '', retryable: true };

function factsWith(changes: Partial<LiveFacts> = {}): LiveFacts {
  return {
    backupId: '01a1fa1b-a048-702f-a832-3f1deebf16d6',
    machine: { uuid: 'u', name: 'm' },
    settings: {
      mode: 'live',
      modeReason: '',
      storages: ['local'],
      storageChoices: [],
      retainDirectory: null,
      ramDisk: null,
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
      runDirectory: '/run',
      memoryFactor: 1.5,
      convergeMs: 1,
      whenNotConverging: 'fail',
      longestPauseMs: 1,
      incremental: true,
      rereadReason: null,
    },
    bootId: 'boot',
    plan,
    before: { running: true, autostart: true },
    snapshotBegun: true,
    warnings: [],
    ...changes,
  };
}

const onImage: LiveVolumeWorld = {
  target: 'vda',
  imageThere: true,
  overlay: 'empty',
  live: 'image',
  persistent: 'image',
  job: null,
  qemu: undefined,
  qemuOnOverlay: false,
  qemuOnImage: false,
};
const onOverlay: LiveVolumeWorld = { ...onImage, overlay: 'written', live: 'overlay', persistent: 'overlay' };
const unseen: LiveVolumeWorld = { ...onImage, overlay: 'written', qemu: 7, qemuOnOverlay: true };
const frozen = { vda: 'mark' };
const off = (reason: string): Pick<LiveWorld, 'machine' | 'status'> => ({
  machine: 'off',
  status: { state: 'shut-off', reason },
});

function worldWith(volumes: readonly LiveVolumeWorld[], changes: Partial<LiveWorld> = {}): LiveWorld {
  const status = { state: 'running', reason: 'unpaused' } as const;
  return { machine: 'active', status, busy: false, state: 'complete', volumes, ...changes };
}

const cases: readonly (readonly [string, Partial<LiveFacts>, LiveWorld, Partial<LiveRepair>])[] = [
  ['nothing was begun', { snapshotBegun: false }, worldWith([onImage]), { kind: 'undo' }],
  ['the snapshot was not taken', {}, worldWith([onImage], { state: 'partial' }), { kind: 'undo' }],
  [
    'memory is still being written',
    {},
    worldWith([onImage], { busy: true, state: 'partial' }),
    { kind: 'abort-snapshot' },
  ],
  ['libvirt is at something else', {}, worldWith([onImage], { busy: true }), { kind: 'wait' }],
  ['the snapshot was just taken', {}, worldWith([onOverlay]), { kind: 'go-on', from: 'mark', giveUp: false }],
  [
    'only one of two volumes is on its overlay',
    {},
    worldWith([onOverlay, onImage]),
    { kind: 'go-on', from: 'merge', giveUp: true },
  ],
  [
    'the memory state is gone',
    { frozen },
    worldWith([onOverlay], { state: 'absent' }),
    { kind: 'go-on', from: 'merge', giveUp: true },
  ],
  [
    'T1 is not stored yet',
    { frozen },
    worldWith([onOverlay]),
    { kind: 'go-on', from: 'stow', giveUp: false },
  ],
  ['T1 is stored', { frozen, retained: {} }, worldWith([onOverlay]), { kind: 'go-on', from: 'merge' }],
  [
    'given up, and merged half',
    { frozen, mergeBegun: true, givenUp: { cancelled: false, error } },
    worldWith([onImage, onOverlay]),
    { kind: 'go-on', from: 'merge', giveUp: false },
  ],
  [
    'somebody merged before T1 was stored',
    { frozen },
    worldWith([onImage]),
    { kind: 'go-on', from: 'verify', giveUp: true },
  ],
  [
    'all is back',
    { frozen, retained: {}, mergeBegun: true },
    worldWith([onImage]),
    { kind: 'go-on', from: 'verify', giveUp: false },
  ],
  ['verified', { retained: {}, merged: true }, worldWith([onImage]), { kind: 'go-on', from: 'commit' }],
  [
    'its vCPUs were held for a pivot',
    { frozen, retained: {}, mergeBegun: true, vcpusHeld: true },
    worldWith([onOverlay], { status: { state: 'paused', reason: 'user' } }),
    { kind: 'resume' },
  ],
  [
    'it may be about to stop: the suspend of a dead agent is under way',
    { vcpusHeld: true },
    worldWith([onImage]),
    { kind: 'resume' },
  ],
  [
    'the others of its group may have no T1',
    { settings: { ...factsWith().settings, group }, pointInTime: '2026-11-20T00:00:00.000Z' },
    worldWith([onOverlay], { state: 'complete' }),
    { kind: 'go-on', from: 'merge', giveUp: true },
  ],
  [
    'all of its group have their T1',
    { settings: { ...factsWith().settings, group }, begunTogether: true },
    worldWith([onOverlay], { state: 'complete' }),
    { kind: 'go-on', from: 'mark', giveUp: false },
  ],
  [
    'its owner has suspended it',
    { frozen, retained: {} },
    worldWith([onOverlay], { status: { state: 'paused', reason: 'user' } }),
    { kind: 'go-on', from: 'merge' },
  ],
  [
    'a snapshot could not let it run on',
    {},
    worldWith([onOverlay], { status: { state: 'paused', reason: 'creating-snapshot' } }),
    { kind: 'resume' },
  ],
  [
    'it crashed on its overlay',
    { frozen },
    worldWith([{ ...onOverlay, live: undefined }], off('crashed')),
    { kind: 'start-cold' },
  ],
  [
    'its owner switched it off on its overlay',
    { frozen },
    worldWith([{ ...onOverlay, live: undefined }], off('shutdown')),
    { kind: 'go-on', from: 'stow' },
  ],
  [
    'libvirt has forgotten its QEMU in a pivot',
    { frozen, retained: {}, mergeBegun: true, vcpusHeld: true },
    worldWith([{ ...onOverlay, live: undefined, qemu: 7 }], off('unknown')),
    { kind: 'end-forgotten', pid: 7 },
  ],
  [
    'a forgotten QEMU whose vCPUs may run is left alone',
    { frozen, retained: {}, mergeBegun: true },
    worldWith([{ ...onOverlay, live: undefined, qemu: 7 }], off('unknown')),
    { kind: 'park' },
  ],
  [
    'QEMU is on an overlay that libvirt does not know of: the next start must use it',
    {},
    worldWith([unseen]),
    { kind: 'name-images', targets: ['vda'], onOverlays: true, giveUp: true },
  ],
  [
    'QEMU has opened an overlay and has not switched to it',
    {},
    worldWith([{ ...unseen, overlay: 'empty', qemuOnImage: true }, onImage]),
    { kind: 'undo' },
  ],
  [
    'on that overlay its vCPUs stand still',
    {},
    worldWith([{ ...unseen, persistent: 'overlay' }], {
      status: { state: 'paused', reason: 'creating-snapshot' },
    }),
    { kind: 'resume' },
  ],
  [
    'on that overlay it runs until its owner starts it anew',
    {},
    worldWith([{ ...unseen, persistent: 'overlay' }]),
    { kind: 'park' },
  ],
  [
    'started anew it is merged, and its T1 is given up',
    { givenUp: { cancelled: false, error } },
    worldWith([{ ...unseen, persistent: 'overlay', live: 'overlay' }]),
    { kind: 'go-on', from: 'merge' },
  ],
  [
    'an overlay that libvirt does not know of may be older than the image once a merge has begun',
    { frozen, retained: {}, mergeBegun: true },
    worldWith([unseen]),
    { kind: 'park' },
  ],
  [
    'it is off, and its definition does not name what it wrote',
    { frozen },
    worldWith([{ ...onOverlay, live: undefined, persistent: 'image' }], off('crashed')),
    { kind: 'name-images', onOverlays: true, giveUp: false },
  ],
  [
    'its definition names an overlay that was merged',
    { frozen, retained: {}, mergeBegun: true },
    worldWith([{ ...onImage, persistent: 'overlay' }]),
    { kind: 'name-images', onOverlays: false },
  ],
  ['its chain is not known', { frozen }, worldWith([{ ...onOverlay, live: 'unknown' }]), { kind: 'park' }],
  [
    'an overlay that it needs is gone',
    { frozen },
    worldWith([{ ...onOverlay, overlay: 'absent' }]),
    { kind: 'park' },
  ],
  [
    'it was migrated',
    { frozen },
    worldWith([{ ...onOverlay, live: undefined }], off('migrated')),
    { kind: 'park' },
  ],
];

void t.test('recovery of a live backup decides by what is there', (t) => {
  for (const [name, facts, world, expected] of cases)
    t.match(decideLive(factsWith(facts), world, { attempts: new Map(), rebooted: false }), expected, name);
  t.end();
});

void t.test('after a boot of the host only what would have been started is started', (t) => {
  const world = worldWith([{ ...onOverlay, live: undefined }], off('unknown'));
  const circumstances = { attempts: new Map(), rebooted: true };
  t.match(decideLive(factsWith({ frozen }), world, circumstances), { kind: 'start-cold' });
  const before = { running: true, autostart: false };
  t.match(decideLive(factsWith({ frozen, before }), world, circumstances), { kind: 'go-on', from: 'stow' });
  t.end();
});

void t.test('what does not help is not tried for ever', (t) => {
  const attempts = new Map<LiveRepair['kind'], number>([
    ['resume', 100],
    ['start-cold', 100],
    ['abort-snapshot', 1],
  ]);
  const decide = (world: LiveWorld): LiveRepair =>
    decideLive(factsWith({ frozen, vcpusHeld: true }), world, { attempts, rebooted: false });
  t.match(decide(worldWith([onOverlay], { status: { state: 'paused', reason: 'user' } })), { kind: 'park' });
  t.match(decide(worldWith([{ ...onOverlay, live: undefined }], off('crashed'))), { kind: 'park' });
  t.match(decide(worldWith([onImage], { busy: true, state: 'partial' })), { kind: 'wait' });
  t.end();
});
