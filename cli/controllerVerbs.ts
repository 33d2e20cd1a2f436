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
        description: 'HOST:PORT; without --tls of this host alone (default: 127.0.0.1:9774)',
      },
      {
        flags: '--tls',
        description:
          'with certificates of the CA in --dir, which is made where there is none: hosts can join',
      },
    ],
    examples: [
      'controller --stub --dir /tmp/reports',
      'controller --stub --dir /var/lib/stillpoint-controller --tls --listen 192.0.2.7:7421 --json',
    ],
    load: async () => (await import('./commands/controller.ts')).controller,
  },
];
