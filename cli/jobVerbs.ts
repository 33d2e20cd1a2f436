import type { Verb } from './verbs.ts';

/** Verbs that hold a running job, and let it go on. */
export const jobVerbs: readonly Verb[] = [
  {
    name: 'job pause',
    arguments: '<ID>',
    summary:
      'has a running backup, or a copy of a policy, read and send nothing more until it is resumed; its deadlines wait',
    changes: true,
    options: [
      {
        flags: '--max <duration>',
        description: 'it goes on by itself after 90s, 30m, 2h, … (1h unless told)',
      },
    ],
    examples: ['job pause 01a1fa1b-a048', 'job pause 01a1fa1b-a048 --max 30m'],
    load: async () => (await import('./commands/jobPause.ts')).jobPause,
  },
  {
    name: 'job resume',
    arguments: '<ID>',
    summary: 'has a job that is paused go on',
    changes: true,
    options: [],
    examples: ['job resume 01a1fa1b-a048'],
    load: async () => (await import('./commands/jobPause.ts')).jobResume,
  },
];
