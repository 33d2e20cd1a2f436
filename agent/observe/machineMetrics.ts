import type { MachineStatus } from './hostStatus.ts';
import {
  labelled,
  type Metric,
  one,
  type Observation,
  type Sample,
  seconds,
  secondsOrNull,
} from './metric.ts';

/** Machines beyond this have no figures of their own: a scrape stays bounded, whatever runs on the host. */
export const machinesMax = 1000;

/** Figures of the machines that backups are made of. */
function each(figures: (machine: MachineStatus) => readonly Sample[]): Metric['samples'] {
  return (observation) => wanted(observation).slice(0, machinesMax).flatMap(figures);
}

function wanted({ status }: Observation): readonly MachineStatus[] {
  return status.machines.filter(({ excluded }) => !excluded);
}

/** Of machines. */
export const machineMetrics: readonly Metric[] = [
  {
    name: 'stillpoint_machines',
    type: 'gauge',
    help: 'Machines of this host that the configuration does not exclude.',
    labels: [],
    samples: (observation) => one(wanted(observation).length),
  },
  {
    name: 'stillpoint_machines_without_figures',
    type: 'gauge',
    help: `Machines beyond the first ${machinesMax} by name, of which no figure has a label.`,
    labels: [],
    samples: (observation) => one(Math.max(0, wanted(observation).length - machinesMax)),
  },
  {
    name: 'stillpoint_machines_without_backup',
    type: 'gauge',
    help: 'Machines of which no storage has a backup that can be restored.',
    labels: [],
    samples: (observation) =>
      one(wanted(observation).filter(({ lastBackups }) => lastBackups.length === 0).length),
  },
  {
    name: 'stillpoint_machines_overdue',
    type: 'gauge',
    help: 'Machines whose backup has been due for alerts.overdueSeconds by their schedule.',
    labels: [],
    samples: ({ problems }) => one(problems.filter(({ event }) => event === 'machine-overdue').length),
  },
  {
    name: 'stillpoint_backup_last_timestamp_seconds',
    type: 'gauge',
    help: 'T1 of the newest backup that a storage has of a machine and that can be restored.',
    labels: ['machine', 'storage'],
    samples: each(({ name, lastBackups }) =>
      lastBackups.flatMap(({ storage, atMs }) => labelled([name, storage], seconds(atMs))),
    ),
  },
  {
    name: 'stillpoint_backup_last_age_seconds',
    type: 'gauge',
    help: 'How long that was ago when these figures were found.',
    labels: ['machine', 'storage'],
    samples: (observation) =>
      each(({ name, lastBackups }) =>
        lastBackups.flatMap(({ storage, atMs }) =>
          labelled([name, storage], seconds(observation.status.atMs - atMs)),
        ),
      )(observation),
  },
  {
    name: 'stillpoint_backup_last_referenced_bytes',
    type: 'gauge',
    help: 'What that backup would take without deduplication and compression, zeros left out.',
    labels: ['machine', 'storage'],
    samples: each(({ name, lastBackups }) =>
      lastBackups.flatMap(({ storage, referencedBytes }) => labelled([name, storage], referencedBytes)),
    ),
  },
  {
    name: 'stillpoint_backup_last_run_successful',
    type: 'gauge',
    help: '0: the newest backup job of the machine that has ended was not finished: it failed or was cancelled.',
    labels: ['machine'],
    samples: each(({ name, lastRun }) =>
      labelled([name], lastRun === null ? null : Number(lastRun.state === 'finished')),
    ),
  },
  {
    name: 'stillpoint_backup_last_run_timestamp_seconds',
    type: 'gauge',
    help: 'When that job ended.',
    labels: ['machine'],
    samples: each(({ name, lastRun }) => labelled([name], secondsOrNull(lastRun?.endedAtMs ?? null))),
  },
  {
    name: 'stillpoint_backup_last_pause_seconds',
    type: 'gauge',
    help: 'How long the machine stood still for its newest backup that succeeded; 0: not at all.',
    labels: ['machine'],
    samples: each(({ name, lastSuccess }) =>
      labelled([name], lastSuccess === null ? null : seconds(lastSuccess.pauseMs ?? 0)),
    ),
  },
  {
    name: 'stillpoint_backup_last_duration_seconds',
    type: 'gauge',
    help: 'How long that backup took from its beginning to its end.',
    labels: ['machine'],
    samples: each(({ name, lastSuccess }) =>
      labelled(
        [name],
        lastSuccess === null ? null : seconds(lastSuccess.endedAtMs - lastSuccess.createdAtMs),
      ),
    ),
  },
  {
    name: 'stillpoint_backup_last_step_seconds',
    type: 'gauge',
    help: 'How long each of its steps took; ARCHITECTURE.md explains them.',
    labels: ['machine', 'step'],
    samples: each(({ name, lastSuccess }) => stepSamples(name, lastSuccess?.steps ?? [])),
  },
  {
    name: 'stillpoint_backup_next_timestamp_seconds',
    type: 'gauge',
    help: 'When the next backup begins by the schedule; in the past: it is due.',
    labels: ['machine'],
    samples: each(({ name, schedule }) => labelled([name], secondsOrNull(schedule?.nextMs ?? null))),
  },
  {
    name: 'stillpoint_backup_due_timestamp_seconds',
    type: 'gauge',
    help: 'Since when a backup is due that has not succeeded yet. Missing: none is.',
    labels: ['machine'],
    samples: each(({ name, schedule }) => labelled([name], secondsOrNull(schedule?.dueSinceMs ?? null))),
  },
];

/** A step that was repeated counts with all its times. */
function stepSamples(
  machine: string,
  steps: readonly { readonly name: string; readonly durationMs: number }[],
): readonly Sample[] {
  const sums = new Map<string, number>();
  for (const { name, durationMs } of steps) sums.set(name, (sums.get(name) ?? 0) + durationMs);
  return [...sums].flatMap(([step, durationMs]) => labelled([machine, step], seconds(durationMs)));
}
