import type { Verb } from './verbs.ts';

/** The verbs about the controller of hosts. */
export const controllerVerbs: readonly Verb[] = [
  {
    name: 'controller',
    arguments: '',
    summary:
      'with --stub: a receiver of what hosts report, for tests; it stores reports, shows them, and does nothing else',
    changes: true,
    options: [
      { flags: '--stub', description: 'only receive reports; there is no other controller in this version' },
      { flags: '--dir <dir>', description: 'where it keeps what it has received' },
      {
        flags: '--listen <address>',
        description: 'HOST:PORT, of this host alone (default: 127.0.0.1:9774)',
      },
    ],
    examples: ['controller --stub --dir /tmp/reports', 'controller --stub --dir /tmp/reports --json'],
    load: async () => (await import('./commands/controller.ts')).controller,
  },
];
