import type { Verb } from './verbs.ts';

/** The verbs that tell of a whole host. */
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
  {
    name: 'policies',
    arguments: '',
    summary:
      'policies and the rules that give them to machines, in the order in which they are asked, and where each comes from: a file, or a controller with its revision',
    changes: false,
    options: [],
    examples: ['policies', 'policies --json'],
    load: async () => (await import('./commands/policies.ts')).policies,
  },
];
