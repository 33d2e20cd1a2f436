import { machinesMax } from './machineMetrics.ts';
import { labelled, type Metric, type Sample, seconds, secondsOrNull } from './metric.ts';
import type { StorageLook, StoredMachine } from './storageLook.ts';

function each(figures: (storage: StorageLook) => readonly Sample[]): Metric['samples'] {
  return ({ status }) => status.storages.flatMap(figures);
}

/** Of the machines of this host alone: a storage may hold those of a hundred others. */
function eachMachine(
  figures: (machine: StoredMachine, labels: readonly string[]) => readonly Sample[],
): Metric['samples'] {
  return ({ status }) =>
    status.storages.flatMap(({ name: storage, machines }) =>
      status.machines
        .filter(({ excluded }) => !excluded)
        .slice(0, machinesMax)
        .flatMap(({ uuid, name }) => {
          const machine = machines.get(uuid);
          return machine === undefined ? [] : figures(machine, [name, storage]);
        }),
    );
}

/** Of storages. */
export const storageMetrics: readonly Metric[] = [
  {
    name: 'stillpoint_storage_up',
    type: 'gauge',
    help: '0: the storage could not be used when it was looked at last, once in 15 minutes.',
    labels: ['storage'],
    samples: each(({ name, unusableSinceMs }) => labelled([name], unusableSinceMs === null ? 1 : 0)),
  },
  {
    name: 'stillpoint_storage_listed_timestamp_seconds',
    type: 'gauge',
    help: 'When the storage last said what it holds; figures about its backups and its room are from then. What jobs of this host have stored since counts all the same.',
    labels: ['storage'],
    samples: each(({ name, listedAtMs }) => labelled([name], secondsOrNull(listedAtMs))),
  },
  {
    name: 'stillpoint_storage_capacity_bytes',
    type: 'gauge',
    help: 'Of its file system; missing where that has no bounds.',
    labels: ['storage'],
    samples: each(({ name, state }) => labelled([name], state.capacityBytes)),
  },
  {
    name: 'stillpoint_storage_free_bytes',
    type: 'gauge',
    help: 'Of its file system.',
    labels: ['storage'],
    samples: each(({ name, state }) => labelled([name], state.freeBytes)),
  },
  {
    name: 'stillpoint_storage_stored_bytes',
    type: 'gauge',
    help: 'What the storage itself takes; only where it has a quota.',
    labels: ['storage'],
    samples: each(({ name, state }) => labelled([name], state.storedBytes)),
  },
  {
    name: 'stillpoint_storage_quota_bytes',
    type: 'gauge',
    help: 'What it may take.',
    labels: ['storage'],
    samples: each(({ name, state }) => labelled([name], state.quotaBytes)),
  },
  {
    name: 'stillpoint_storage_nearly_full',
    type: 'gauge',
    help: '1: warnPercent of its quota or of its file system is reached.',
    labels: ['storage'],
    samples: each(({ name, state }) => labelled([name], Number(state.warning !== null))),
  },
  {
    name: 'stillpoint_storage_backups',
    type: 'gauge',
    help: 'Backups of machines that it holds, whichever host they are of.',
    labels: ['storage'],
    samples: each(({ name, backups }) => labelled([name], backups)),
  },
  {
    name: 'stillpoint_storage_damaged_backups',
    type: 'gauge',
    help: 'Those of them that cannot be restored as they are.',
    labels: ['storage'],
    samples: each(({ name, damagedBackups }) => labelled([name], damagedBackups)),
  },
  {
    name: 'stillpoint_verification_last_timestamp_seconds',
    type: 'gauge',
    help: 'When a backup of the machine in the storage was last verified (`verify --data` or `--boot`) and found good.',
    labels: ['machine', 'storage'],
    samples: eachMachine(({ verifiedAtMs }, labels) => labelled(labels, secondsOrNull(verifiedAtMs))),
  },
  {
    name: 'stillpoint_verification_last_age_seconds',
    type: 'gauge',
    help: 'How long that was ago when these figures were found.',
    labels: ['machine', 'storage'],
    samples: (observation) =>
      eachMachine(({ verifiedAtMs }, labels) =>
        labelled(labels, verifiedAtMs === null ? null : seconds(observation.status.atMs - verifiedAtMs)),
      )(observation),
  },
  {
    name: 'stillpoint_verification_failed',
    type: 'gauge',
    help: '1: the last verification of some backup of the machine in the storage found it not good.',
    labels: ['machine', 'storage'],
    samples: eachMachine(({ failedVerification }, labels) =>
      labelled(labels, Number(failedVerification !== null)),
    ),
  },
];
