import { version } from '../../common/version.ts';
import { jobKinds } from '../jobs/job.ts';
import {
  labelled,
  type Metric,
  one,
  type Observation,
  type Sample,
  seconds,
  secondsOrNull,
} from './metric.ts';

const holds = ['running', 'waiting', 'orphaned', 'parked'] as const;

/** Of the service and its host. */
export const hostMetrics: readonly Metric[] = [
  {
    name: 'stillpoint_up',
    type: 'gauge',
    help: '1: the service has looked at its host. In a textfile, compare stillpoint_look_timestamp_seconds too.',
    labels: [],
    samples: () => one(1),
  },
  {
    name: 'stillpoint_look_timestamp_seconds',
    type: 'gauge',
    help: 'When these figures were found.',
    labels: [],
    samples: ({ status }) => one(seconds(status.atMs)),
  },
  {
    name: 'stillpoint_info',
    type: 'gauge',
    help: 'Always 1; the label is the version of the program.',
    labels: ['version'],
    samples: () => labelled([version], 1),
  },
  {
    name: 'stillpoint_start_timestamp_seconds',
    type: 'gauge',
    help: 'When the service was started.',
    labels: [],
    samples: ({ status }) => one(secondsOrNull(status.service.sinceMs)),
  },
  {
    name: 'stillpoint_config_last_reload_successful',
    type: 'gauge',
    help: '0: a changed configuration was refused, and the one before is in force. Missing: none has changed.',
    labels: [],
    samples: ({ configReload }) => one(configReload === null ? null : Number(configReload.ok)),
  },
  {
    name: 'stillpoint_config_last_reload_timestamp_seconds',
    type: 'gauge',
    help: 'When a changed configuration was read last.',
    labels: [],
    samples: ({ configReload }) => one(secondsOrNull(configReload?.atMs ?? null)),
  },
  {
    name: 'stillpoint_libvirt_up',
    type: 'gauge',
    help: '0: libvirt did not answer when it was asked last, once a minute.',
    labels: [],
    samples: ({ status }) => one(status.hypervisor.unreachableSinceMs === null ? 1 : 0),
  },
  {
    name: 'stillpoint_problems',
    type: 'gauge',
    help: 'What is wrong on this host, as `stillpoint status` tells it.',
    labels: ['severity'],
    samples: ({ problems }) =>
      ['critical', 'warning'].flatMap((severity) =>
        labelled([severity], problems.filter((problem) => problem.severity === severity).length),
      ),
  },
  {
    name: 'stillpoint_jobs',
    type: 'gauge',
    help: 'Jobs that are not at their end. waiting: for their turn on a storage; orphaned: of a process that died; parked: left with work that needs somebody.',
    labels: ['kind', 'state'],
    samples: jobSamples,
  },
  {
    name: 'stillpoint_jobs_queued',
    type: 'gauge',
    help: 'Machines whose scheduled backup is due and has not begun.',
    labels: [],
    samples: ({ status: { machines, jobs, atMs } }) => {
      const busy = new Set(jobs.map(({ machine }) => machine.uuid));
      const isDue = (nextMs: number | null | undefined): boolean =>
        typeof nextMs === 'number' && nextMs <= atMs;
      return one(machines.filter(({ uuid, schedule }) => isDue(schedule?.nextMs) && !busy.has(uuid)).length);
    },
  },
  {
    name: 'stillpoint_job_bytes_total',
    type: 'counter',
    help: 'What the jobs of the service have read or written in each step (`retain`: read for backups, `merge`: pulled or committed) since it was started.',
    labels: ['step'],
    samples: ({ jobBytes }) => [...jobBytes].flatMap(([step, bytes]) => labelled([step], bytes)),
  },
  {
    name: 'stillpoint_scratch_free_bytes',
    type: 'gauge',
    help: 'Free room where backups work: the state directory, the RAM disk, and beside the images of the last backups. Each file system once, 16 of them at most.',
    labels: ['path'],
    samples: ({ places }) => places.flatMap(({ path, freeBytes }) => labelled([path], freeBytes)),
  },
  {
    name: 'stillpoint_journal_bytes',
    type: 'gauge',
    help: 'What the journal takes on its disk.',
    labels: [],
    samples: ({ journalBytes }) => one(journalBytes),
  },
  {
    name: 'stillpoint_outbox_reports',
    type: 'gauge',
    help: 'Reports that wait to be sent to the controller.',
    labels: [],
    samples: ({ outbox }) => one(outbox?.waiting),
  },
  {
    name: 'stillpoint_outbox_oldest_timestamp_seconds',
    type: 'gauge',
    help: 'When the oldest of them was made.',
    labels: [],
    samples: ({ outbox }) => one(secondsOrNull(outbox?.oldestAtMs ?? null)),
  },
  {
    name: 'stillpoint_alerts_waiting',
    type: 'gauge',
    help: 'Alerts that no webhook has taken yet.',
    labels: [],
    samples: ({ waitingAlerts }) => one(waitingAlerts),
  },
];

/** Each combination has a figure, so that one that vanishes is not taken for one that is unknown. */
function jobSamples({ status: { jobs } }: Observation): readonly Sample[] {
  return jobKinds.flatMap((kind) =>
    holds.flatMap((hold) =>
      labelled([kind, hold], jobs.filter((job) => job.kind === kind && job.hold === hold).length),
    ),
  );
}
