import t from 'tap';

import { calm, factsWith, off, overlay, volumeWith, worldWith } from '../../test/sim/backupWorlds.ts';
import {
  type Circumstances,
  decideRepair,
  type Repair,
  restoreAttemptsMax,
  resumeAttemptsMax,
} from './decide.ts';
import type { BackupFacts } from './facts.ts';
import type { World } from './world.ts';

function tried(kind: Repair['kind'], times = restoreAttemptsMax): Circumstances {
  return { ...calm, attempts: new Map([[kind, times]]) };
}

interface Row {
  readonly name: string;
  readonly facts?: Partial<BackupFacts>;
  readonly world: World;
  readonly circumstances?: Circumstances;
  readonly repair: Partial<Repair>;
}

const restored = { ...overlay, chain: 'expected' } as const;

/** Its owner has given a volume other images. */
const ownersOff = { image: 'swapped', header: 'on-frozen', named: false } as const;
const owners = { ...overlay, chain: 'unknown', ownChain: true } as const;

/** The table "The classic flow, done safely", row by row. */
const rows: readonly Row[] = [
  {
    name: 'on complete images of its owner: it is let go',
    facts: { resuming: true },
    world: worldWith({ volumes: [volumeWith(owners)] }),
    repair: { kind: 'let-go' },
  },
  {
    name: 'on images of which nobody knows whether they are complete: parked',
    facts: { resuming: true },
    world: worldWith({ volumes: [volumeWith({ ...owners, ownChain: false })] }),
    repair: { kind: 'park' },
  },
  {
    name: 'one volume on images of its owner, the other not merged: parked',
    facts: { resuming: true },
    world: worldWith({ volumes: [volumeWith(owners), volumeWith({ ...restored, target: 'vdb' })] }),
    repair: { kind: 'park' },
  },
  {
    name: 'on strange images before it can have run: it must not run',
    world: worldWith({ volumes: [volumeWith(owners)] }),
    repair: { kind: 'power-off' },
  },
  {
    name: 'let go before the agent died: for good',
    facts: { resuming: true, letGo: 'why' },
    world: worldWith({ volumes: [volumeWith(owners)], busy: true }),
    repair: { kind: 'let-go', why: 'why' },
  },
  {
    name: 'off, and its owner has given it other images: they are his',
    facts: { resuming: true },
    world: worldWith({ ...off('shutdown'), volumes: [volumeWith({ ...ownersOff })] }),
    repair: { kind: 'let-go' },
  },
  {
    name: 'crashed on images that its owner has given it: started on them first',
    facts: { resuming: true },
    world: worldWith({ ...off('crashed'), volumes: [volumeWith({ ...ownersOff })] }),
    repair: { kind: 'start-cold' },
  },
  {
    name: 'off, and only one volume has another image: parked',
    facts: { resuming: true },
    world: worldWith({
      ...off('shutdown'),
      volumes: [volumeWith({ ...ownersOff }), volumeWith({ ...ownersOff, target: 'vdb', named: true })],
    }),
    repair: { kind: 'park' },
  },
  { name: 'prepared, not saved: the work is removed', world: worldWith(), repair: { kind: 'undo' } },
  {
    name: 'the agent died during the save: wait for it',
    world: worldWith({ busy: true, state: 'partial', status: { state: 'paused', reason: 'saving' } }),
    repair: { kind: 'wait' },
  },
  {
    name: 'libvirtd died during the save: the machine runs, the state goes',
    world: worldWith({ state: 'partial', status: { state: 'running', reason: 'save-canceled' } }),
    repair: { kind: 'undo' },
  },
  {
    name: 'QEMU died during the save: cold start',
    world: worldWith(off('crashed')),
    repair: { kind: 'start-cold' },
  },
  {
    name: 'saved, not swapped: restore',
    world: worldWith({ ...off('saved'), state: 'complete' }),
    repair: { kind: 'restore-original' },
  },
  {
    name: 'the same after a restart of libvirtd, which forgets the reason',
    world: worldWith({ ...off('unknown'), state: 'complete' }),
    repair: { kind: 'restore-original' },
  },
  {
    name: 'one image swapped, one not: finish',
    world: worldWith({
      ...off('saved'),
      state: 'complete',
      volumes: [volumeWith(overlay), volumeWith({ target: 'vdb' })],
    }),
    repair: { kind: 'finish-swap' },
  },
  {
    name: 'the rest cannot be swapped: put back what was',
    world: worldWith({
      ...off('saved'),
      state: 'complete',
      volumes: [volumeWith(overlay), volumeWith({ target: 'vdb' })],
    }),
    circumstances: tried('finish-swap', 1),
    repair: { kind: 'put-back' },
  },
  {
    name: 'image moved, no overlay: an operator',
    world: worldWith({ ...off('saved'), both: { image: 'missing' } }),
    repair: { kind: 'park' },
  },
  {
    name: 'overlay in place: restore',
    world: worldWith({ ...off('saved'), state: 'complete', both: overlay }),
    repair: { kind: 'restore-swapped' },
  },
  {
    name: 'restored paused, not resumed: resume if the owner had it running',
    facts: { vcpusHeld: true },
    world: worldWith({ state: 'complete', status: { state: 'paused', reason: 'migrating' }, both: restored }),
    repair: { kind: 'resume' },
  },
  {
    name: 'an image that somebody holds keeps it from running on: an operator, who is told by whom',
    facts: { vcpusHeld: true },
    world: worldWith({
      state: 'complete',
      status: { state: 'paused', reason: 'migrating' },
      both: { ...restored, lockedBy: 'process 1 (qemu-nbd)' },
    }),
    circumstances: tried('resume', resumeAttemptsMax),
    repair: {
      kind: 'park',
      why: 'the image of vda is held by process 1 (qemu-nbd)',
      code: 'CANNOT_START_MACHINE',
    },
  },
  {
    name: 'it pauses again and again: an operator',
    facts: { flushed: true },
    world: worldWith({ status: { state: 'paused', reason: 'io-error' }, both: restored }),
    circumstances: tried('resume', resumeAttemptsMax),
    repair: { kind: 'park', why: 'it does not run on, it is paused (io-error)' },
  },
  {
    name: 'restored paused of an owner who had suspended it: stays so',
    facts: {
      vcpusHeld: true,
      before: { running: false, autostart: false, definitionCut: false },
    },
    world: worldWith({ state: 'complete', status: { state: 'paused', reason: 'migrating' }, both: restored }),
    repair: { kind: 'go-on', from: 'stow', valid: true },
  },
  {
    name: 'restored on a cut chain (trap 1): never resumed',
    facts: { vcpusHeld: true },
    world: worldWith({
      state: 'complete',
      status: { state: 'paused', reason: 'migrating' },
      both: { ...overlay, chain: 'without-frozen' },
    }),
    repair: { kind: 'power-off' },
  },
  {
    name: 'state torn after the swap: the images as they were',
    world: worldWith({ ...off('saved'), state: 'partial', both: overlay }),
    repair: { kind: 'put-back' },
  },
  {
    name: 'state torn before the swap: cold start',
    world: worldWith({ ...off('failed'), state: 'partial' }),
    repair: { kind: 'start-cold' },
  },
  {
    name: 'the agent died during the restore: wait',
    facts: { vcpusHeld: true },
    world: worldWith({
      busy: true,
      state: 'complete',
      status: { state: 'paused', reason: 'starting-up' },
      both: restored,
    }),
    repair: { kind: 'wait' },
  },
  {
    name: 'libvirtd died during the restore: restore again',
    facts: { vcpusHeld: true },
    world: worldWith({ ...off('daemon'), state: 'complete', both: overlay }),
    repair: { kind: 'restore-swapped' },
  },
  {
    name: 'the restore fails three times: put the images back',
    facts: {},
    world: worldWith({ ...off('failed'), state: 'complete', both: overlay }),
    circumstances: tried('restore-swapped'),
    repair: { kind: 'put-back' },
  },
  {
    name: 'and the original ones are held by somebody: an operator',
    world: worldWith({ ...off('failed'), state: 'complete', both: { lockedBy: 'process 1 (qemu-nbd)' } }),
    circumstances: tried('restore-original'),
    repair: { kind: 'park' },
  },
  {
    name: 'somebody started it in the window: the state is never restored, base and state remain a backup',
    world: worldWith({ state: 'complete', both: { ...restored, written: true } }),
    repair: { kind: 'go-on', from: 'stow', valid: true },
  },
  {
    name: 'somebody started it and it is off again: the state is never restored',
    world: worldWith({ ...off('shutdown'), state: 'complete', both: { ...overlay, written: true } }),
    repair: { kind: 'go-on', from: 'stow', valid: true },
  },
  {
    name: 'somebody ran the original images: the state is never restored',
    world: worldWith({ ...off('shutdown'), state: 'complete', both: { written: true } }),
    repair: { kind: 'undo' },
  },
  {
    name: 'somebody started it while one volume was not swapped: there is no common T1',
    world: worldWith({
      state: 'complete',
      volumes: [
        volumeWith({ ...restored, written: true }),
        volumeWith({ target: 'vdb', chain: 'without-frozen' }),
      ],
    }),
    repair: { kind: 'go-on', from: 'stow', valid: false },
  },
  {
    name: 'merge interrupted: pull again',
    facts: { resuming: true },
    world: worldWith({ state: 'complete', both: restored }),
    repair: { kind: 'go-on', from: 'stow' },
  },
  {
    name: 'merged, not flushed: flush',
    facts: { resuming: true, mergeRun: '1' },
    world: worldWith({
      state: 'complete',
      both: { image: 'swapped', header: 'merged', chain: 'without-frozen' },
    }),
    repair: { kind: 'go-on', from: 'flush', valid: true },
  },
  {
    name: 'merged, not flushed, and QEMU died (trap 2): the frozen image goes under it again',
    facts: { resuming: true },
    world: worldWith({
      ...off('crashed'),
      state: 'complete',
      both: { image: 'swapped', header: 'merged', written: true },
    }),
    repair: { kind: 'put-frozen-under' },
  },
  {
    name: 'and then it is started again, on its whole chain',
    facts: { resuming: true },
    world: worldWith({ ...off('crashed'), state: 'complete', both: { ...overlay, written: true } }),
    repair: { kind: 'start-cold' },
  },
  {
    name: 'and runs on it although the merge had been found incomplete',
    facts: { resuming: true, mergeRun: '1' },
    world: worldWith({ runId: '2', state: 'complete', both: { ...restored, written: true } }),
    circumstances: { ...calm, mergeIncomplete: true },
    repair: { kind: 'go-on', from: 'stow' },
  },
  {
    name: 'somebody booted the lost merge: it must not run on',
    facts: { resuming: true, mergeRun: '1' },
    world: worldWith({
      runId: '2',
      state: 'complete',
      both: { image: 'swapped', header: 'merged', chain: 'without-frozen' },
    }),
    circumstances: { ...calm, mergeIncomplete: true },
    repair: { kind: 'power-off' },
  },
  {
    name: 'paused on a full file system (trap 4): resumed',
    facts: { resuming: true },
    world: worldWith({ state: 'complete', status: { state: 'paused', reason: 'io-error' }, both: restored }),
    repair: { kind: 'resume' },
  },
  {
    name: 'suspended by its owner during the merge: his decision',
    facts: { resuming: true, vcpusHeld: false },
    world: worldWith({ state: 'complete', status: { state: 'paused', reason: 'user' }, both: restored }),
    repair: { kind: 'go-on', from: 'stow' },
  },
  {
    name: 'suspended by our flush: resumed',
    facts: { resuming: true, vcpusHeld: true },
    world: worldWith({
      state: 'complete',
      status: { state: 'paused', reason: 'user' },
      both: { image: 'swapped', header: 'merged', chain: 'without-frozen' },
    }),
    repair: { kind: 'resume' },
  },
  {
    name: 'flushed: only the autostart is missing',
    facts: { flushed: true, frozenPoint: true },
    world: worldWith(),
    repair: { kind: 'go-on', from: 'unguard', valid: true },
  },
  {
    name: 'flushed and crashed before the guard was lifted: started',
    facts: { flushed: true, frozenPoint: true },
    world: worldWith(off('crashed')),
    repair: { kind: 'start-cold' },
  },
  {
    name: 'crashed long after: not our concern',
    facts: { flushed: true, unguarded: true, frozenPoint: true },
    world: worldWith(off('crashed')),
    repair: { kind: 'go-on', from: 'unguard' },
  },
  {
    name: 'libvirt does not know it any more, and it ran on its overlays: parked, for it may run elsewhere',
    facts: { resuming: true },
    world: worldWith({ machine: 'gone', both: { ...overlay, header: 'merged' } }),
    repair: { kind: 'park' },
  },
  {
    name: 'migrated away before anything was swapped: undone',
    world: worldWith(off('migrated')),
    repair: { kind: 'undo' },
  },
  {
    name: 'migrated away while it ran on its overlays: parked',
    facts: { resuming: true },
    world: worldWith({ ...off('migrated'), both: overlay }),
    repair: { kind: 'park' },
  },
  {
    name: 'libvirt does not know it any more, and nothing was swapped: undone',
    world: worldWith({ machine: 'gone' }),
    repair: { kind: 'undo' },
  },
  {
    name: 'host crashed, its RAM disk is empty, autostart was ours: cold start',
    world: worldWith(off('unknown')),
    circumstances: { ...calm, rebooted: true },
    repair: { kind: 'start-cold' },
  },
  {
    name: 'host crashed, no autostart: stays off',
    facts: { before: { running: true, autostart: false, definitionCut: false } },
    world: worldWith(off('unknown')),
    circumstances: { ...calm, rebooted: true },
    repair: { kind: 'undo' },
  },
  {
    name: 'an undo that was interrupted goes on, whatever is left',
    facts: { undoing: true },
    world: worldWith({ both: { image: 'without-frozen' } }),
    repair: { kind: 'undo' },
  },
  {
    name: 'nothing was planned: nothing to look at',
    facts: { plan: undefined },
    world: worldWith({ machine: 'gone' }),
    repair: { kind: 'undo' },
  },
];

void t.test('every row of the table of the classic flow has its repair', async (t) => {
  for (const { name, facts, world, circumstances, repair } of rows) {
    t.match(decideRepair(factsWith(facts), world, circumstances ?? calm), repair, name);
  }
});
