import type { Verb } from './verbs.ts';

/** The verb that tells of a whole host. */
export const statusVerbs: readonly Verb[] = [
  {
    name: 'status',
    arguments: '',
    summary:
      'how the host is: the service, jobs at work, each machine’s last and next backup, storages, and what is wrong; exit code 9 for unfinished work, 3 when something else is wrong',
    changes: false,
    options: [
      {
        flags: '-w, --watch',
        description: 'until Ctrl-C: drawn anew each second on a terminal, otherwise a line for each change',
      },
    ],
    examples: ['status', 'status --watch', 'status --json'],
    load: async () => (await import('./commands/status.ts')).status,
  },
];
