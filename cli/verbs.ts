import type { RunVerb } from './cli.ts';
import { enrolmentVerbs } from './enrolmentVerbs.ts';
import { controllerVerbs } from './controllerVerbs.ts';
import { jobVerbs } from './jobVerbs.ts';
import { statusVerbs } from './statusVerbs.ts';
import { storageVerbs } from './storageVerbs.ts';

/** An option of a verb, in the form of commander: `-s, --long <value>`. */
export interface VerbOption {
  readonly flags: string;
  readonly description: string;
  readonly choices?: readonly string[] | undefined;
  /** Choices that a later version will have. */
  readonly laterChoices?: readonly string[] | undefined;
  /** May be given several times. */
  readonly many?: boolean | undefined;
}

/** One verb of the command line: help, completion and the reference are made of this. */
export interface Verb {
  /** One word, or two such as `job show`. */
  readonly name: string;
  /** Arguments in the form of commander. */
  readonly arguments: string;
  readonly summary: string;
  /** Whether it may change something on the host. */
  readonly changes: boolean;
  readonly options: readonly VerbOption[];
  /** What one can type, without the name of the program. */
  readonly examples: readonly string[];
  /** The program of the verb, loaded when it is typed: start-up stays quick. */
  load(): Promise<RunVerb>;
}

const ofHost = {
  flags: '--host',
  description: 'BACKUP is one of a host (backup --host): an id, HOST@latest or HOST@T1',
};
const partition: VerbOption = {
  flags: '--partition <place>',
  description:
    'where the files are: the number of a partition (0: none, the whole volume is the file system), NUMBER:SUBVOLUME of btrfs, or GROUP/VOLUME of LVM',
};
const yes: VerbOption = { flags: '-y, --yes', description: 'do not ask' };

export const verbs: readonly Verb[] = [
  ...statusVerbs,
  {
    name: 'doctor',
    arguments: '',
    summary:
      'checks the host and the configuration, and says what to do; exit code 1 when a check fails, as what status exits with 3 for does, and 0 when there are only warnings',
    changes: false,
    options: [],
    examples: ['doctor', 'doctor --json'],
    load: async () => (await import('./commands/doctor.ts')).doctor,
  },
  {
    name: 'machines',
    arguments: '',
    summary:
      'machines with the mode they allow, their policy, their last backup and the next one of their schedule',
    changes: false,
    options: [],
    examples: ['machines'],
    load: async () => (await import('./commands/machines.ts')).machines,
  },
  {
    name: 'backup',
    arguments: '[MACHINE...]',
    summary:
      'backs up machines: all disks at one instant, and CPU and memory too (with --mode live, or memory: in the policy)',
    changes: true,
    options: [
      {
        flags: '-a, --all',
        description:
          'all running machines that the configuration does not exclude, and its templates; those that are off are taken by name or pattern',
      },
      {
        flags: '-i, --image <image>',
        description: 'an image that no machine runs (a template): a path, or POOL/VOLUME of a storage pool',
      },
      { flags: '--name <name>', description: 'with --image: its name; that of the file unless told' },
      {
        flags: '-x, --exclude <machine>',
        description: 'leaves out machines of this name or pattern; may be repeated',
        many: true,
      },
      {
        flags: '-m, --mode <mode>',
        description:
          'how the instant is made; save: with the memory, after a pause; live: with the memory, and a pause of milliseconds; disk: without, and no pause; offline: a machine that is off; auto: disk, or live where the policy asks for the memory, or offline for a machine that is off',
        choices: ['auto', 'save', 'live', 'disk', 'offline'],
      },
      {
        flags: '-t, --together',
        description:
          'one instant for all of these machines: they stand still for a moment, until each has begun; with --mode live until the memory of all is written',
      },
      {
        flags: '-R, --reread',
        description: 'read every volume in full, although an increment is possible',
      },
      {
        flags: '-s, --storage <name>',
        description: 'into this storage instead of those of the policy; may be repeated',
        many: true,
      },
      {
        flags: '-l, --label <key=value>',
        description: 'a label for the manifest; may be repeated',
        many: true,
      },
      {
        flags: '--host',
        description: 'the definitions of this host instead of machines: no disks, no secret values',
      },
      { flags: '-n, --dry-run', description: 'only say what would be done' },
    ],
    examples: [
      'backup web-1',
      'backup web-1 db-1 --storage local --label reason=upgrade',
      "backup 'web-*' --exclude web-test --mode disk",
      'backup --all --dry-run',
      'backup web-1 --json',
      'backup web-1 db-1 --together',
      'backup web-1 db-1 --together --mode live',
      'backup --image /srv/images/debian-12.qcow2 --name debian',
      'backup --host',
    ],
    load: async () => (await import('./commands/backup.ts')).backup,
  },
  {
    name: 'list',
    arguments: '[MACHINE]',
    summary: 'backups, oldest first, damaged ones included; times are UTC',
    changes: false,
    options: [
      { flags: '--host', description: 'backups of hosts (backup --host), each checked against its digests' },
    ],
    examples: ['list', 'list web-1', 'list --host', 'list --json'],
    load: async () => (await import('./commands/list.ts')).list,
  },
  {
    name: 'show',
    arguments: '<BACKUP>',
    summary: 'everything about a backup, and how to restore it by hand',
    changes: false,
    options: [ofHost],
    examples: [
      'show web-1@latest',
      'show --host node-1@latest',
      'show 01a1fa1b-a048',
      'show web-1@20261120T151523.123Z --json',
    ],
    load: async () => (await import('./commands/show.ts')).show,
  },
  {
    name: 'restore',
    arguments: '<BACKUP>',
    summary: 'brings a machine back to the instant of a backup; shows the plan and asks first',
    changes: true,
    options: [
      { flags: '-s, --storage <name>', description: 'from the copy in this storage' },
      { flags: '--as <name>', description: 'as a new machine of this name' },
      {
        flags: '--in-place',
        description: 'over the machine as it is now; what it replaces is kept beside the images',
      },
      {
        flags: '--instant',
        description: 'start the machine at once on the backup, and copy that while it runs',
      },
      {
        flags: '--volume <target>',
        description:
          'only this volume, with --in-place, --to or --files; may be repeated, or several with commas: vda,vdb',
        many: true,
      },
      {
        flags: '--files <path...>',
        description:
          'only these files or directories of the guest’s file system, below --to by their paths; several, or repeated',
        many: true,
      },
      partition,
      { flags: '--force', description: 'with --files: replace files that are there' },
      {
        flags: '--start <how>',
        description: 'resume: go on at the instant; boot: cold; none: leave it off',
        choices: ['resume', 'boot', 'none'],
      },
      {
        flags: '--to <directory>',
        description:
          'images there; without --as (or --in-place of a machine that is gone) only the files, and no machine',
      },
      {
        flags: '--to-device <device>',
        description:
          'one volume (--volume) onto a block device that nobody uses, which is overwritten; no machine',
      },
      {
        flags: '--map <target=path>',
        description: 'the image of one volume there; may be repeated',
        many: true,
      },
      {
        flags: '--network <old=new>',
        description:
          'connect the network cards that were on network or bridge OLD to NEW, or to nothing: none; may be repeated',
        many: true,
      },
      {
        flags: '--no-safety-copy',
        description: 'keep what is replaced only until the restore has succeeded',
      },
      { flags: '--host', description: 'the definitions of a host (backup --host), as files, with --to' },
      yes,
    ],
    examples: [
      'restore web-1@latest --in-place',
      'restore web-1@latest --as web-1-copy --start boot',
      'restore web-1@latest --in-place --instant',
      'restore web-1@latest --in-place --volume vdb',
      'restore web-1@latest --to /srv/look --start none',
      'restore web-1@latest --files /etc/nginx /etc/hosts --to /srv/look',
      'restore web-1@latest --volume vdb --to-device /dev/vg0/web-1-data',
      'restore --host node-1@latest --to /srv/node-1',
    ],
    load: async () => (await import('./commands/restore.ts')).restore,
  },
  {
    name: 'files',
    arguments: '<BACKUP> [PATH]',
    summary:
      'what is in a directory of the guest’s file system, as of a backup; restore --files takes it out',
    changes: false,
    options: [
      { flags: '-s, --storage <name>', description: 'from the copy in this storage' },
      {
        flags: '--volume <target>',
        description: 'only look on this volume; may be repeated, or several with commas: vda,vdb',
        many: true,
      },
      partition,
    ],
    examples: [
      'files web-1@latest',
      'files web-1@latest /etc',
      'files web-1@latest /srv --volume vdb --json',
    ],
    load: async () => (await import('./commands/files.ts')).files,
  },
  {
    name: 'verify',
    arguments: '[BACKUP...]',
    summary: 'checks backups against their manifests, or starts them in isolation',
    changes: true,
    options: [
      { flags: '-a, --all', description: 'every backup in every storage' },
      {
        flags: '-s, --storage <name>',
        description: 'only copies in this storage; may be repeated',
        many: true,
      },
      { flags: '-d, --data', description: 'read every byte and compare digests' },
      {
        flags: '--older-than <duration>',
        description:
          'with --all --data: only what was not read for so long (12h, 30d); what was never read comes first, then the longest ago',
      },
      {
        flags: '--budget <duration>',
        description:
          'with --all --data: stop after this time (90m, 2h), say what is left; the next run goes on',
      },
      {
        flags: '-b, --boot',
        description:
          'start it where it can reach nothing (no network, no host devices), watch for a sign of life, store result and picture beside it',
      },
      {
        flags: '--start <how>',
        description: 'with --boot: resume from the memory state, or boot; resume unless there is none',
        choices: ['resume', 'boot'],
      },
      { flags: '--expect <text>', description: 'with --boot: this must appear on the serial port' },
      {
        flags: '--timeout <seconds>',
        description: 'with --boot: how long the guest has for its sign of life (default: 300)',
      },
    ],
    examples: [
      'verify web-1@latest --data',
      'verify --all',
      'verify --all --data --storage vault --older-than 30d --budget 2h',
      'verify web-1@latest --boot --expect login:',
    ],
    load: async () => (await import('./commands/verify.ts')).verify,
  },
  {
    name: 'delete',
    arguments: '<BACKUP>',
    summary: 'removes a backup from every storage, for good; asks first',
    changes: true,
    options: [
      {
        flags: '-s, --storage <name>',
        description: 'only the copy in this storage; may be repeated',
        many: true,
      },
      ofHost,
      yes,
    ],
    examples: [
      'delete 01a1fa1b-a048 --storage local',
      'delete 01a1fa1b-a048',
      'delete --host 01a1fa1b-a048',
      'delete web-1@20261120T151523.123Z --yes',
    ],
    load: async () => (await import('./commands/delete.ts')).deleteBackup,
  },
  {
    name: 'prune',
    arguments: '[MACHINE...]',
    summary: 'removes the backups that no rule of the policy keeps; says why each stays, and asks first',
    changes: true,
    options: [
      { flags: '-s, --storage <name>', description: 'only in this storage; may be repeated', many: true },
      { flags: '-n, --dry-run', description: 'only say what would be removed, and what keeps the others' },
      {
        flags: '--host',
        description: 'backups of hosts (all, or those named), by hostBackups: keep in the configuration',
      },
      yes,
    ],
    examples: ['prune --dry-run', 'prune web-1 --storage local', 'prune --yes --json'],
    load: async () => (await import('./commands/prune.ts')).prune,
  },
  {
    name: 'protect',
    arguments: '<BACKUP>',
    summary: 'keeps a backup from being deleted or pruned, in every storage that holds it',
    changes: true,
    options: [
      { flags: '--off', description: 'it may go again' },
      { flags: '--reason <text>', description: 'why; list and show tell it' },
    ],
    examples: [
      'protect web-1@latest --reason before-the-upgrade',
      'protect web-1@20261120T151523.123Z --off',
    ],
    load: async () => (await import('./commands/protect.ts')).protect,
  },
  {
    name: 'jobs',
    arguments: '',
    summary: 'what runs, what is unfinished, and the last jobs',
    changes: false,
    options: [
      { flags: '-a, --all', description: 'every job in the journal' },
      { flags: '--machine <name>', description: 'only jobs of this machine' },
    ],
    examples: ['jobs', 'jobs --machine web-1 --all'],
    load: async () => (await import('./commands/jobs.ts')).jobs,
  },
  {
    name: 'job show',
    arguments: '<ID>',
    summary: 'everything about a job',
    changes: false,
    options: [],
    examples: ['job show 01a1fa1b-a048'],
    load: async () => (await import('./commands/jobShow.ts')).jobShow,
  },
  {
    name: 'job watch',
    arguments: '<ID>',
    summary: 'follows a job until it ends; with --json one line for each change',
    changes: false,
    options: [],
    examples: ['job watch 01a1fa1b-a048'],
    load: async () => (await import('./commands/jobWatch.ts')).jobWatch,
  },
  ...jobVerbs,
  {
    name: 'job cancel',
    arguments: '<ID>',
    summary: 'gives a job up; its machine is brought back in order',
    changes: true,
    options: [],
    examples: ['job cancel 01a1fa1b-a048'],
    load: async () => (await import('./commands/jobChange.ts')).jobCancel,
  },
  {
    name: 'job retry',
    arguments: '<ID>',
    summary: 'goes on with a job that was left with work to do',
    changes: true,
    options: [],
    examples: ['job retry 01a1fa1b-a048'],
    load: async () => (await import('./commands/jobChange.ts')).jobRetry,
  },
  {
    name: 'release',
    arguments: '<MACHINE>',
    summary: 'takes the checkpoints that backups have left off a machine; backups are not touched',
    changes: true,
    options: [],
    examples: ['release web-1'],
    load: async () => (await import('./commands/release.ts')).release,
  },
  ...storageVerbs,
  {
    name: 'repair-offline',
    arguments: '',
    summary: 'after a crash of the host, before libvirt starts: completes images that a lost merge left',
    changes: true,
    options: [],
    examples: ['repair-offline'],
    load: async () => (await import('./commands/repairOffline.ts')).repairOfflineVerb,
  },
  {
    name: 'agent',
    arguments: '',
    summary: 'the service: backs machines up by their schedules, and takes over jobs whose process died',
    changes: true,
    options: [{ flags: '--once', description: 'recover what there is, and exit' }],
    examples: ['agent', 'agent --once'],
    load: async () => (await import('./commands/agent.ts')).agent,
  },
  ...controllerVerbs,
  ...enrolmentVerbs,
  {
    name: 'completion',
    arguments: '<SHELL>',
    summary: 'prints completions for bash, zsh or fish',
    changes: false,
    options: [],
    examples: ['completion bash > /etc/bash_completion.d/stillpoint'],
    load: async () => (await import('./commands/completion.ts')).completion,
  },
];

/** Options of the program itself; they may stand anywhere. */
export const globalOptions: readonly VerbOption[] = [
  { flags: '--json', description: 'print results as JSON, one object on a line' },
  { flags: '-q, --quiet', description: 'no progress and no remarks; warnings and errors only' },
  { flags: '-v, --verbose', description: 'tell on stderr what is being done' },
  {
    flags: '-c, --config <file>',
    description:
      'configuration, a file or a directory (default: $STILLPOINT_CONFIG, then /etc/stillpoint/config.yaml)',
  },
  {
    flags: '--standalone',
    description: 'do the work in this process, also where the service of the host runs',
  },
  { flags: '--no-color', description: 'no colours, also on a terminal' },
];

/** Words that belong to Stillpoint and that this version does not know. */
export const laterWords: ReadonlySet<string> = new Set(['sync']);
