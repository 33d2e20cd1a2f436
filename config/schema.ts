import * as z from 'zod';
import { parseClockPeriod } from '../common/clockPeriod.ts';
import { parseCron } from '../common/cron.ts';
import { logLevels } from '../common/log.ts';
import { objectLock } from './objectLock.ts';
import { intervalPattern } from '../common/span.ts';
import { parseBytes } from '../common/units.ts';
import { socket, socketGroup } from './socket.ts';
import { listen } from './listen.ts';
import { delegatedRestore } from './delegatedRestore.ts';
import { controllerSchema } from './controller.ts';
import { checkBandwidth, storageBandwidth } from './storageBandwidth.ts';
import { hooks } from './hooks.ts';
import { keep } from './keep.ts';
import { alerts, metrics } from './observability.ts';
import { absolutePath } from './path.ts';

const wholeNumber = z.int('expected a whole number, without a unit');
const bytesPerSecond = wholeNumber.nonnegative().describe('Bytes per second; 0 is without limit.');
const seconds = wholeNumber.positive().describe('Seconds.');
export const name = z
  .string()
  .regex(/^[A-Za-z0-9._-]{1,64}$/, 'expected a name of letters, digits, `.`, `_` and `-`');

const agent = z.strictObject({
  libvirtUri: z.string().min(1).default('qemu:///system').describe('Which libvirt, as `virsh -c` takes it.'),
  stateDir: absolutePath.default('/var/lib/stillpoint').describe('Where the journal is.'),
  socket,
  socketGroup,
  listen,
  delegatedRestore,
  ramDisk: absolutePath
    .nullable()
    .default('/dev/shm/stillpoint')
    .describe('Memory states pass through here if they fit; null: they never do.'),
  maxParallelMachines: wholeNumber.min(1).max(64).default(2).describe('Jobs on machines at the same time.'),
  monitoringMarker: z
    .boolean()
    .default(true)
    .describe('A file beside the socket says which machine is being snapshotted: snapshotting/MACHINE.'),
  backupAddress: z
    .union([z.ipv4(), z.ipv6()], { error: 'expected an IP address of this host' })
    .optional()
    .describe(
      'Connections to S3 storages come from this address; from the one that the system chooses unless told.',
    ),
  stopSeconds: seconds
    .default(300)
    .describe(
      'How long the service may take to end: it finishes what must not be cut short, gives up what can be done again, and leaves to the next process what that can go on with.',
    ),
  logLevel: z
    .enum(logLevels)
    .default('info')
    .describe('The environment variable STILLPOINT_LOG wins over it.'),
});

const byteSize = z.union(
  [
    wholeNumber.positive(),
    z
      .string()
      .superRefine(saidBy(parseBytes))
      .transform((text) => parseBytes(text)),
  ],
  { error: 'expected bytes, or a size such as "500 GiB" or "2TB"' },
);

const ofEveryStorage = {
  bandwidthBytesPerSecond: storageBandwidth,
  quota: byteSize
    .optional()
    .describe(
      'Backups may take so much of it: bytes, or a size such as "500 GiB" or "2TB". As much as its file system holds unless told. In a directory, blocks that backups share count in each of them.',
    ),
  warnPercent: wholeNumber
    .min(1, 'expected 1 to 100')
    .max(100, 'expected 1 to 100')
    .default(85)
    .describe('From here on its fullness is told: of its quota, or of its file system.'),
  stallSeconds: seconds
    .default(600)
    .describe('Without a sign of life for this long it counts as unreachable: a network mount can hang.'),
  maxParallelMachines: wholeNumber
    .min(1)
    .optional()
    .describe(
      'So many backups at a time write into it, of all commands together; as many as the host allows unless told.',
    ),
};

const directoryStorage = z
  .strictObject({
    kind: z.literal('directory'),
    path: absolutePath.describe('An existing directory, better not on the file system of the machines.'),
    ...ofEveryStorage,
  })
  .superRefine(checkBandwidth);

const repositoryStorage = z
  .strictObject({
    kind: z.literal('repository'),
    url: z
      .string()
      .regex(
        /^(?:file:\/\/\/[^\0]*|s3:\/\/[^/\0]+(?:\/[^\0]*)?)$/,
        'expected file:///PATH or s3://BUCKET/PREFIX',
      )
      .describe('Where it is: file:///PATH, on any file system, or s3://BUCKET/PREFIX.'),
    keyFile: absolutePath.describe(
      'A file of 64 hexadecimal digits that opens the repository; `stillpoint storage init` makes it. Keep a copy elsewhere, or the recovery key: without either nobody can read the backups.',
    ),
    endpoint: z.string().optional().describe('s3: https://HOST or https://HOST:PORT.'),
    region: z.string().optional().describe('s3: us-east-1 unless told.'),
    addressing: z
      .enum(['path', 'virtualHost'], { error: 'expected path or virtualHost' })
      .optional()
      .describe('s3: whether the bucket stands in the path (unless told) or before the host.'),
    caFile: absolutePath
      .optional()
      .describe('s3: certificates (PEM) to trust instead of those of the system.'),
    credentialsFile: absolutePath
      .optional()
      .describe(
        's3: a file with AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…, readable by its owner alone.',
      ),
    compressionLevel: wholeNumber
      .min(0, 'expected 0 to 19')
      .max(19, 'expected 0 to 19')
      .default(2)
      .describe(
        'How much processor time what is written is worth: zstd of this level, 0 does not compress. Holds for what is not stored yet; a repository may hold chunks of any level.',
      ),
    objectLock,
    localAddress: z
      .union([z.ipv4(), z.ipv6()], { error: 'expected an IP address of this host' })
      .optional()
      .describe('s3: connections come from this address; from agent.backupAddress unless told.'),
    ...ofEveryStorage,
  })
  .superRefine((storage, context) => {
    const isS3 = storage.url.startsWith('s3:');
    for (const key of s3Keys) {
      const isNeeded = isS3 && (key === 'endpoint' || key === 'credentialsFile');
      if (isNeeded && storage[key] === undefined)
        context.addIssue({ code: 'custom', path: [key], message: `a storage of s3: needs ${key}` });
      if (!isS3 && storage[key] !== undefined)
        context.addIssue({ code: 'custom', path: [key], message: `a storage of file: has no ${key}` });
    }
    checkBandwidth(storage, context);
  });

const s3Keys = [
  'endpoint',
  'region',
  'addressing',
  'caFile',
  'credentialsFile',
  'objectLock',
  'localAddress',
] as const;

const storage = z.discriminatedUnion('kind', [directoryStorage, repositoryStorage], {
  error: 'expected kind: directory or kind: repository',
});

const storageGroup = z.strictObject({
  storages: z
    .array(name)
    .min(1, 'name at least one storage')
    .describe('Names under `storages`: the master first, then those that stand in for it.'),
});

const modes = ['auto', 'save', 'live', 'disk', 'offline'] as const;
const mode = z.enum(modes, { error: `expected one of ${modes.join(', ')}` });

const cron = z
  .string('expected the five fields of cron, such as "0 2 * * *"')
  .superRefine(saidBy(parseCron))
  .describe(
    'Minute, hour, day of the month, month, day of the week, as in crontab(5), or @hourly, @daily, @weekly, @monthly, @yearly. A time that the clocks jump over is due when they jump, one that they show twice is due once; a line for every hour is due in each hour that goes by.',
  );
const periods = z.array(
  z.string('expected times such as "22:00-06:00"').superRefine(saidBy(parseClockPeriod)),
);

const schedule = z
  .strictObject({
    cron: cron.optional(),
    every: z
      .string('expected an interval such as "30min", "4h", "1d" or "2w"')
      .regex(intervalPattern, 'expected an interval such as "30min", "4h", "1d" or "2w"')
      .optional()
      .describe('Instead of cron: so long after the last one began.'),
    jitterSeconds: wholeNumber
      .nonnegative('expected 0 or more')
      .max(86_400, 'expected 86400 or less')
      .default(0)
      .describe(
        'Each machine begins later by a part of this that is always the same; with every, only the first time.',
      ),
    windows: periods
      .default([])
      .describe(
        'Backups begin only then: times such as "22:00-06:00" or "sat,sun 00:00-24:00" (days are those on which it begins), or dates such as "2026-12-24..2027-01-02". None: at any time.',
      ),
    blackouts: periods.default([]).describe('No backup begins then; what is due begins afterwards, once.'),
    retries: z
      .strictObject({
        count: wholeNumber
          .nonnegative('expected 0 or more')
          .max(100, 'expected 100 or less')
          .default(2)
          .describe('So many more attempts after one that failed; none when the next backup comes first.'),
        firstDelaySeconds: seconds.default(300),
        factor: z
          .number('expected a number')
          .min(1, 'expected 1 or more')
          .max(10, 'expected 10 or less')
          .default(3)
          .describe('Each delay is so many times as long as the one before.'),
        maxDelaySeconds: seconds.default(3600),
      })
      .prefault({}),
  })
  .refine(
    (settings) => (settings.cron === undefined) !== (settings.every === undefined),
    'expected either cron or every',
  );

const replication = z.strictObject({
  from: name.describe(
    'The storage that has them: one of `storages`, or of a group of them, or the `to` of an entry before this one; of a group, whichever of its storages has a backup.',
  ),
  to: name.describe('The storage that gets them.'),
  keep: keep
    .nullable()
    .optional()
    .describe(
      'Which backups `stillpoint prune` leaves there; by the keep of the policy unless told. null: all.',
    ),
});

export const policy = z.strictObject({
  mode: mode
    .default('auto')
    .describe(
      'How T1 is made: save keeps the memory too, live as well with a pause of milliseconds, disk pauses nothing, offline reads a machine that is off; auto is disk, or live where memory asks for it, or offline for a machine that is off.',
    ),
  memory: z
    .union([z.enum(['never', 'always']), z.strictObject({ every: wholeNumber.positive() })], {
      error: 'expected never, always or { every: N }',
    })
    .default('never')
    .describe(
      'Mode auto: which backups of a running machine hold its memory state. every: N is the first, and then each Nth of each storage.',
    ),
  memoryMaxBytes: wholeNumber
    .positive()
    .nullable()
    .default(null)
    .describe('Mode auto: a machine with more memory is backed up without it. null: no limit.'),
  storages: z
    .array(name)
    .min(1, 'name at least one storage, or leave the key out for all of them')
    .optional()
    .describe(
      'Names under `storages` or `storageGroups`; unless told every group, and every storage that is in none, but for those that `replicate` copies to.',
    ),
  replicate: z
    .array(replication)
    .default([])
    .describe(
      'What is copied from one storage to another when a backup is made, in this order, while the machine is free again. A backup whose copy fails is made all the same; the next one brings what is missing.',
    ),
  schedule: z
    .union([cron, schedule], {
      error: 'expected the five fields of cron, such as "0 2 * * *", or { cron: … } or { every: … }',
    })
    .optional()
    .describe('When backups are made: a line of cron, or more about it. None unless told.'),
  timeZone: z
    .string()
    .refine(isTimeZone, 'expected a time zone, such as Europe/Zurich')
    .optional()
    .describe('What a day is for keep, and the clocks of schedule; that of the host unless told.'),
  keep: keep
    .nullable()
    .default(null)
    .describe(
      'Which backups `stillpoint prune` leaves in each storage: every one that any of these rules keeps. null: all.',
    ),
  retainDirectory: absolutePath
    .nullable()
    .default(null)
    .describe('Where frozen images stand until they are stored; null: `.stillpoint/` beside each image.'),
  incremental: z
    .boolean()
    .default(true)
    .describe(
      'Backups of a running machine leave a checkpoint in it, and modes disk and live read what has changed since; false: they read all and leave nothing.',
    ),
  read: z.strictObject({ bandwidthBytesPerSecond: bytesPerSecond.default(0) }).prefault({}),
  freeze: z
    .enum(['auto', 'never', 'required'], { error: 'expected auto, never or required' })
    .default('auto')
    .describe(
      "Mode disk: whether the guest's agent freezes the file systems at T1. auto: where an agent answers; required: no backup without it.",
    ),
  merge: z
    .strictObject({
      bandwidthBytesPerSecond: bytesPerSecond.default(0),
      includeSharedBase: z
        .boolean()
        .default(false)
        .describe('Also pull an image that other machines share into each machine.'),
    })
    .prefault({}),
  live: z
    .strictObject({
      memoryFactor: z
        .number('expected a number')
        .min(1, 'expected 1 or more')
        .max(10, 'expected 10 or less')
        .default(1.5)
        .describe('The memory state may become so many times as large as the memory of the machine.'),
      convergeSeconds: seconds
        .default(120)
        .describe('So long the guest may change its memory faster than it is written.'),
      whenNotConverging: z
        .enum(['pause-longer', 'disk', 'fail'], {
          error: 'expected pause-longer, disk or fail',
        })
        .default('disk')
        .describe(
          'What is done then: pause-longer stops the vCPUs for what is left; disk makes a backup in mode disk instead; fail ends the job.',
        ),
      longestPauseSeconds: seconds
        .default(10)
        .describe(
          'With pause-longer: how long the vCPUs may stop before they are stopped for good until all is written.',
        ),
    })
    .prefault({})
    .describe('How mode live goes about a guest that changes its memory all the time.'),
  deadlines: z
    .strictObject({
      freezeSeconds: seconds.default(30),
      saveSeconds: seconds.default(600),
      restoreSeconds: seconds.default(600),
      mergeSeconds: seconds.default(86_400),
    })
    .prefault({})
    .describe('After this long a stage is given up.'),
  hooks,
});

export const machineRule = z
  .strictObject({
    match: z.string().min(1).describe('Name of a machine; `*` and `?` stand for any characters.'),
    policy: name.optional(),
    exclude: z.boolean().optional().describe('true: these machines are never backed up.'),
  })
  .refine(
    (rule) => (rule.policy === undefined) !== (rule.exclude !== true),
    'expected either policy or exclude: true',
  );

const template = z.strictObject({
  name: z.string().min(1).max(200).describe('Its name in lists; not that of a machine.'),
  image: z
    .string()
    .regex(/^(?:\/[^\0]+|[^/\0]+\/[^/\0]+)$/, 'expected an absolute path, or POOL/VOLUME')
    .describe('An image that no machine runs: an absolute path, or POOL/VOLUME of a storage pool.'),
});

/** The whole configuration. Every key has a default. */
export const configSchema = z.strictObject({
  agent: agent.prefault({}),
  controller: controllerSchema,
  storages: z.record(name, storage).default({}),
  storageGroups: z
    .record(name, storageGroup)
    .default({})
    .describe(
      'Storages that stand in for each other: each backup goes to the first one of a group that can take it.',
    ),
  policies: z.record(name, policy).default({}),
  hostBackups: z
    .strictObject({
      keep: keep
        .nullable()
        .default(null)
        .describe(
          'Which backups of each host `stillpoint prune --host` leaves in each storage: every one that any of these rules keeps. null: all.',
        ),
    })
    .prefault({})
    .describe('The backups that `stillpoint backup --host` makes.'),
  machines: z
    .array(machineRule)
    .default([])
    .describe('The first rule that matches decides; otherwise policy `default`.'),
  templates: z
    .array(template)
    .default([])
    .describe('Images that no machine runs; `backup --all` stores them too, by the policy of their names.'),
  metrics,
  alerts,
});

export type Config = z.output<typeof configSchema>;
export type AgentConfig = Config['agent'];
export type StorageConfig = Config['storages'][string];
export type PolicyConfig = Config['policies'][string];
export type ScheduleConfig = z.output<typeof schedule>;

/** What a policy says that does not mention anything. */
export function emptyPolicy(): PolicyConfig {
  return policy.parse({});
}

/** What a policy says about its schedule, with everything decided that it leaves out. */
export function wholeSchedule(said: string | ScheduleConfig): ScheduleConfig {
  return typeof said === 'string' ? schedule.parse({ cron: said }) : said;
}

/** A check that says of a text what its parser does. */
function saidBy(parse: (text: string) => unknown): (text: string, context: z.RefinementCtx) => void {
  return (text, context) => {
    try {
      parse(text);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
    }
  };
}

function isTimeZone(text: string): boolean {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: text }) instanceof Intl.DateTimeFormat;
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}
