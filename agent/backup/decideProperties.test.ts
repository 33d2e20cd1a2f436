import {
  array,
  assert,
  boolean,
  constant,
  constantFrom,
  integer,
  oneof,
  property,
  record,
  tuple,
} from 'fast-check';
import t from 'tap';

import { factsWith } from '../../test/sim/backupWorlds.ts';
import { type Circumstances, decideRepair, isDownByAccident, type Repair } from './decide.ts';
import type { BackupFacts } from './facts.ts';
import type { VolumeWorld, World } from './world.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? 20_261_120);
const settings = { seed, numRuns: 20_000 };
/** As in recovery.ts: more repairs than these go in a circle. */
const repairsMax = 40;

const flag = constantFrom(true, undefined);
const anyFacts = record({
  prepared: flag,
  vcpusHeld: flag,
  poweredOff: flag,
  resuming: flag,
  frozenPoint: flag,
  flushed: constantFrom(true, undefined, undefined, undefined),
  unguarded: flag,
  mergeRun: constantFrom('1', '2', undefined),
  before: record({ running: boolean(), autostart: boolean(), definitionCut: boolean() }),
}).map(factsWith);

const anyFiles = oneof(
  { weight: 4, arbitrary: constant({ image: 'original', header: undefined } as const) },
  {
    weight: 8,
    arbitrary: record({
      image: constant('swapped' as const),
      header: constantFrom('on-frozen' as const, 'merged' as const, 'other' as const),
    }),
  },
  {
    weight: 1,
    arbitrary: constantFrom(
      'without-frozen' as const,
      'missing' as const,
      'foreign' as const,
      'undone' as const,
    ).map((image) => ({ image, header: undefined })),
  },
);
const anyVolume = tuple(
  anyFiles,
  constantFrom('expected' as const, 'without-frozen' as const, 'unknown' as const),
  boolean(),
  constantFrom('somebody', undefined),
).map(([files, chain, written, lockedBy]) => ({ ...files, chain, written, lockedBy }));
const activeStatus = constantFrom(
  { state: 'running', reason: 'booted' } as const,
  { state: 'paused', reason: 'migrating' } as const,
  { state: 'paused', reason: 'user' } as const,
  { state: 'paused', reason: 'io-error' } as const,
);
const offStatus = constantFrom(
  'saved',
  'managed-saved',
  'migrated',
  'panicked',
  'crashed',
  'shutdown',
  'destroyed',
  'failed',
  'daemon',
  'unknown',
).map((reason) => ({ state: 'shut-off', reason }) as const);
const anyWorld = record({
  machine: constantFrom('active' as const, 'off' as const, 'gone' as const),
  activeStatus,
  offStatus,
  runId: constantFrom('1', '2'),
  busy: constantFrom(false, false, false, true),
  state: constantFrom('absent' as const, 'partial' as const, 'complete' as const),
  vda: anyVolume,
  vdb: anyVolume,
}).map(({ vda, vdb, activeStatus: on, offStatus: down, ...world }): World => {
  const isActive = world.machine === 'active';
  const seen = ({ chain, ...volume }: typeof vda, target: string): VolumeWorld => ({
    target,
    ...volume,
    chain: isActive ? chain : undefined,
  });
  return {
    ...world,
    runId: isActive ? world.runId : undefined,
    busy: isActive && world.busy,
    status: isActive ? on : down,
    volumes: [seen(vda, 'vda'), seen(vdb, 'vdb')],
  };
});
const anyCircumstances = record({
  attempts: array(
    tuple(
      constantFrom(
        'restore-original' as const,
        'restore-swapped' as const,
        'start-cold' as const,
        'finish-swap' as const,
      ),
      integer({ min: 1, max: 3 }),
    ),
  ).map((entries): Circumstances['attempts'] => new Map(entries)),
  rebooted: boolean(),
  mergeIncomplete: boolean(),
});

function isSwapped(volume: VolumeWorld): boolean {
  return volume.image === 'swapped';
}

/** What must never be decided, whatever is written down and whatever is there. */
function forbidden(repair: Repair, facts: BackupFacts, world: World): string | undefined {
  const { volumes } = world;
  const swapped = volumes.filter(isSwapped);
  const says = (isWrong: boolean, why: string): string | undefined => (isWrong ? why : undefined);
  switch (repair.kind) {
    case 'restore-original':
    case 'restore-swapped':
      return (
        says(
          facts.resuming === true || volumes.some(({ written }) => written),
          'a state onto images that ran',
        ) ??
        says(
          world.state !== 'complete' || world.machine === 'active',
          'no state to restore, or a machine that is on',
        ) ??
        says(
          repair.kind === 'restore-original' && swapped.length > 0,
          'the original images are not in place',
        ) ??
        says(
          repair.kind === 'restore-swapped' &&
            (swapped.length < volumes.length || swapped.some(({ header }) => header !== 'on-frozen')),
          'not every overlay is in place',
        )
      );
    case 'resume':
      return (
        says(
          world.machine !== 'active' || world.status.state !== 'paused' || facts.before?.running !== true,
          'not ours to resume',
        ) ??
        says(
          facts.flushed !== true &&
            swapped.some(({ header, chain }) => header === 'on-frozen' && chain !== 'expected'),
          'a machine on a cut chain',
        )
      );
    case 'start-cold':
      return (
        says(world.machine !== 'off' || facts.before?.running !== true, 'not ours to start') ??
        says(
          facts.flushed !== true && swapped.some(({ header }) => header === 'merged'),
          'a merge that may be lost',
        )
      );
    case 'put-back':
      return says(
        facts.resuming === true ||
          volumes.some(({ written }) => written) ||
          swapped.some(({ header }) => header !== 'on-frozen'),
        'what was written would be lost',
      );
    case 'finish-swap':
      return says(
        world.machine === 'active' || world.state !== 'complete' || facts.resuming === true,
        'images of a machine that runs',
      );
    case 'put-frozen-under':
      return says(world.machine === 'active', 'an image in use');
    case 'power-off':
      return says(world.machine !== 'active', 'nothing to power off');
    case 'undo':
      return says(
        facts.flushed === true || swapped.length > 0,
        'frozen images would be removed from under the machine',
      );
    case 'go-on':
      return (
        says(
          (repair.from === 'unguard') !== (facts.flushed === true),
          'the guard is lifted after the flush only',
        ) ??
        says(
          repair.from === 'flush' &&
            (world.machine !== 'active' || swapped.some(({ header }) => header !== 'merged')),
          'nothing merged to flush',
        ) ??
        says(
          repair.valid &&
            facts.flushed !== true &&
            (swapped.length < volumes.length || world.state !== 'complete'),
          'no complete T1',
        ) ??
        says(repair.from === 'stow' && swapped.length === 0, 'nothing to merge')
      );
    default:
      return undefined;
  }
}

void t.test(
  `no combination of facts and world leads to a repair that loses something (seed ${seed})`,
  async (t) => {
    assert(
      property(anyFacts, anyWorld, anyCircumstances, (facts, world, circumstances) => {
        const repair = decideRepair(facts, world, circumstances);
        const why = forbidden(repair, facts, world);
        if (why !== undefined) throw new Error(`${repair.kind}: ${why}`);
      }),
      settings,
    );
    t.pass('held');
  },
);

interface Host {
  facts: BackupFacts;
  world: World;
  readonly restoreWorks: boolean;
  readonly startWorks: boolean;
  readonly swapWorks: boolean;
}

function starts(host: Host, status: World['status']): void {
  const volumes = host.world.volumes.map((volume): VolumeWorld => {
    const chain = volume.header === 'on-frozen' ? 'expected' : 'without-frozen';
    return { ...volume, chain, written: isSwapped(volume) };
  });
  host.world = {
    ...host.world,
    machine: 'active',
    status,
    runId: String(Number(host.world.runId ?? '2') + 1),
    busy: false,
    volumes,
  };
}

/** What each repair makes of the world, as recovery.ts does it. */
function apply(host: Host, repair: Repair, attempts: Map<Repair['kind'], number>): void {
  const wanted: World['status'] = host.facts.before?.running
    ? { state: 'running', reason: 'unpaused' }
    : { state: 'paused', reason: 'migrating' };
  const count = (): void => void attempts.set(repair.kind, (attempts.get(repair.kind) ?? 0) + 1);
  const fails = (): void => {
    host.world = { ...host.world, status: { state: 'shut-off', reason: 'failed' } };
  };
  const files = (change: (volume: VolumeWorld) => VolumeWorld): void => {
    host.world = { ...host.world, volumes: host.world.volumes.map(change) };
  };
  switch (repair.kind) {
    case 'wait':
      host.world = { ...host.world, busy: false };
      return;
    case 'resume':
      host.world = { ...host.world, status: { state: 'running', reason: 'unpaused' } };
      host.facts = { ...host.facts, vcpusHeld: false };
      return;
    case 'power-off':
      host.facts = { ...host.facts, poweredOff: true };
      host.world = {
        ...host.world,
        machine: 'off',
        status: { state: 'shut-off', reason: 'destroyed' },
        runId: undefined,
      };
      return files((volume) => ({ ...volume, chain: undefined }));
    case 'restore-original':
      count();
      return host.restoreWorks ? starts(host, wanted) : fails();
    case 'restore-swapped':
      count();
      if (!host.restoreWorks) return fails();
      host.facts = { ...host.facts, resuming: true, vcpusHeld: false };
      return starts(host, wanted);
    case 'finish-swap':
      count();
      return host.swapWorks
        ? files((volume) => ({ ...volume, image: 'swapped', header: 'on-frozen' }))
        : undefined;
    case 'put-back':
      return files((volume) => ({ ...volume, image: 'original', header: undefined }));
    case 'put-frozen-under':
      return files((volume) => (isSwapped(volume) ? { ...volume, header: 'on-frozen' } : volume));
    case 'start-cold':
      count();
      host.facts = { ...host.facts, resuming: true, vcpusHeld: false };
      return host.startWorks ? starts(host, { state: 'running', reason: 'unpaused' }) : fails();
    default:
      throw new Error(`${repair.kind} is an end`);
  }
}

void t.test(
  `recovery comes to an end from everywhere, with the machine as its owner had it (seed ${seed})`,
  async (t) => {
    let longest = 0;
    assert(
      property(
        anyFacts,
        anyWorld,
        boolean(),
        boolean(),
        record({ restoreWorks: boolean(), startWorks: boolean(), swapWorks: boolean() }),
        (facts, world, rebooted, mergeIncomplete, works) => {
          const host: Host = { facts, world, ...works };
          const attempts = new Map<Repair['kind'], number>();
          const way: string[] = [];
          for (;;) {
            const repair = decideRepair(host.facts, host.world, { attempts, rebooted, mergeIncomplete });
            way.push(repair.kind);
            if (way.length > repairsMax) throw new Error(`in a circle: ${way.slice(-8).join(' ')}`);
            if (repair.kind === 'park') break;
            if (repair.kind === 'undo' || repair.kind === 'go-on') {
              const { status, machine, volumes } = host.world;
              // An undo had begun, and the machine been given back: what it is now is its owner's doing.
              if (volumes.some(({ image }) => image === 'undone')) break;
              const down =
                machine === 'off' &&
                host.facts.unguarded !== true &&
                isDownByAccident(host.facts, status, rebooted);
              if (down) throw new Error(`left down: ${way.join(' ')}`);
              const held =
                status.state === 'paused' && host.facts.before?.running === true && status.reason !== 'user';
              if (machine === 'active' && held) throw new Error(`left paused: ${way.join(' ')}`);
              break;
            }
            const why = forbidden(repair, host.facts, host.world);
            if (why !== undefined) throw new Error(`${repair.kind} after ${way.join(' ')}: ${why}`);
            apply(host, repair, attempts);
          }
          longest = Math.max(longest, way.length);
        },
      ),
      settings,
    );
    t.comment(`longest way: ${longest} repairs`);
    t.ok(longest < repairsMax);
  },
);
