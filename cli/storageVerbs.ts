import type { Verb } from './verbs.ts';

/** The verbs about storages themselves, and about what goes from one to another. */
export const storageVerbs: readonly Verb[] = [
  {
    name: 'replicate',
    arguments: '[MACHINE...]',
    summary:
      'copies backups from one storage to another that does not have them; only what is new there is sent',
    changes: true,
    options: [
      {
        flags: '--from <name>',
        description: 'the storage that has them, or a group: whichever of its storages has each',
      },
      {
        flags: '--to <name>',
        description: 'the storage that gets them; of a storage group the first one that can be used',
      },
      {
        flags: '--older',
        description: 'also those older than the newest one there, which may have been pruned there',
      },
      { flags: '-n, --dry-run', description: 'only say what would be copied' },
    ],
    examples: ['replicate --from local --to vault', 'replicate web-1 --from vault --to cloud --dry-run'],
    load: async () => (await import('./commands/replicate.ts')).replicate,
  },
  {
    name: 'storage list',
    arguments: '',
    summary:
      'the storages of the configuration, whether they can be used and how full they are, and which of each group is used',
    changes: false,
    options: [],
    examples: ['storage list'],
    load: async () => (await import('./commands/storage.ts')).storageList,
  },
  {
    name: 'storage init',
    arguments: '<NAME>',
    summary:
      'makes the repository of a storage, its key file where there is none, and a recovery key to print',
    changes: true,
    options: [
      {
        flags: '--no-recovery-key',
        description: 'only the key file opens it: who loses that has lost the backups',
      },
    ],
    examples: ['storage init vault'],
    load: async () => (await import('./commands/storageInit.ts')).storageInit,
  },
  {
    name: 'storage import',
    arguments: '<NAME>',
    summary:
      'looks through a storage that this host does not know: machines, backups, what is damaged, what is on this host, and how to restore; writes nothing',
    changes: false,
    options: [],
    examples: ['storage import vault', 'storage import vault --json'],
    load: async () => (await import('./commands/storageImport.ts')).storageImport,
  },
  {
    name: 'storage show',
    arguments: '<NAME>',
    summary:
      'what a storage holds: capacity, stored and referenced bytes, deduplication and compression, and each machine',
    changes: false,
    options: [],
    examples: ['storage show vault'],
    load: async () => (await import('./commands/storageShow.ts')).storageShow,
  },
  {
    name: 'storage gc',
    arguments: '<NAME>',
    summary: 'frees what no backup in a repository needs any more; others may go on writing',
    changes: true,
    options: [
      {
        flags: '--fence',
        description:
          'give up backups that were begun and not ended: their agents are dead, or fail when they commit',
      },
      {
        flags: '--repack <percent>',
        description: 'copy what is needed of packs of which less than this is needed (default: 50; 0: none)',
      },
    ],
    examples: ['storage gc vault', 'storage gc vault --fence'],
    load: async () => (await import('./commands/storageGc.ts')).storageGc,
  },
  {
    name: 'storage check',
    arguments: '<NAME>',
    summary: 'checks a whole repository: every backup, and with --data every byte that one needs',
    changes: true,
    options: [
      { flags: '-d, --data', description: 'read every byte and compare it' },
      { flags: '--rebuild-index', description: 'make index objects for packs that none names' },
      {
        flags: '--repair',
        description:
          'say what would put it in order, which backups are touched, and what the next backup heals; with --data of what only reading shows, too',
      },
      { flags: '--apply', description: 'with --repair: do it; others may go on writing and collecting' },
      {
        flags: '--alone',
        description: 'with --repair: your word that no host collects now, for a verdict that is damaged',
      },
    ],
    examples: [
      'storage check vault',
      'storage check vault --data',
      'storage check vault --repair',
      'storage check vault --data --repair --apply',
    ],
    load: async () => (await import('./commands/storageCheck.ts')).storageCheck,
  },
  {
    name: 'storage keys',
    arguments: '<NAME>',
    summary: 'what opens a repository; makes or removes a way into it',
    changes: true,
    options: [
      { flags: '--add-recovery', description: 'make another recovery key, and print it once' },
      { flags: '--add-file <path>', description: 'let another key file open it; made where there is none' },
      {
        flags: '--add-passphrase',
        description:
          'let a passphrase open it, asked for or read from stdin: with it the key file can be made anew',
      },
      {
        flags: '--recover',
        description:
          'with the recovery key, asked for or read from stdin: make the key file anew, or let the one that is there open it',
      },
      {
        flags: '--write-only',
        description:
          'with --add-file or --recover: this key file makes backups, and restores none, its own included',
      },
      {
        flags: '--passphrase',
        description: 'with --recover: with the passphrase instead of the recovery key',
      },
      {
        flags: '--remove <id>',
        description: 'this one opens it no more, or is damaged; never the last one that is whole',
      },
      { flags: '--force', description: 'with --remove: also the one that this host opens it by' },
      {
        flags: '--rotate',
        description:
          'use new keys from now on, which only the key file of this host opens, and a new recovery key where there was one',
      },
      { flags: '-y, --yes', description: 'with --rotate: do not ask' },
    ],
    examples: [
      'storage keys vault',
      'storage keys vault --add-recovery',
      'storage keys vault --add-file /root/web-2.key --write-only',
      'storage keys vault --recover',
      'storage keys vault --rotate',
      'storage keys vault --remove 1f0c2a4b5d6e7f80',
    ],
    load: async () => (await import('./commands/storageKeys.ts')).storageKeys,
  },
  {
    name: 'storage mount',
    arguments: '<BACKUP> <DIR>',
    summary:
      'shows the volumes of a backup as raw files in a directory (made where there is none), read-only, until Ctrl-C',
    changes: true,
    options: [
      { flags: '-s, --storage <name>', description: 'the copy in this storage' },
      {
        flags: '--volume <target>',
        description: 'only this volume; may be repeated, or several with commas: vda,vdb',
        many: true,
      },
    ],
    examples: ['storage mount web-1@latest /mnt/web-1', 'storage mount web-1@latest /mnt/web-1 --volume vdb'],
    load: async () => (await import('./commands/storageMount.ts')).storageMount,
  },
  {
    name: 'storage unmount',
    arguments: '<DIR>',
    summary: 'ends a storage mount, also one whose command was killed',
    changes: true,
    options: [],
    examples: ['storage unmount /mnt/web-1'],
    load: async () => (await import('./commands/storageMount.ts')).storageUnmount,
  },
];
