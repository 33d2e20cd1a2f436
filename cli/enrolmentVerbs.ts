import type { Verb, VerbOption } from './verbs.ts';

const directory: VerbOption = {
  flags: '--ca <directory>',
  description: 'where the controller keeps its CA; made where there is none',
};

/** The verbs by which a host and a controller come to trust each other. They come after `agent` and `controller`. */
export const enrolmentVerbs: readonly Verb[] = [
  {
    name: 'agent join',
    arguments: '<ADDRESS>',
    summary:
      'joins the controller at HOST:PORT: makes a key here, and gets a certificate for a one-time token',
    changes: true,
    options: [
      { flags: '--token-file <file>', description: 'the token is in this file' },
      { flags: '--token-stdin', description: 'the token is the first line on stdin' },
      {
        flags: '--ca-fingerprint <sha256>',
        description:
          'the CA of the controller must have this fingerprint; otherwise it is shown, and somebody must say that it is the right one',
      },
      { flags: '-y, --yes', description: 'do not ask' },
    ],
    examples: [
      'agent join backup.example.net:7421 --token-file /root/token --ca-fingerprint 3F:A0:11',
      'agent join 192.0.2.7:7421 --token-stdin --ca-fingerprint 3fa011',
    ],
    load: async () => (await import('./commands/agentJoin.ts')).agentJoin,
  },
  {
    name: 'agent leave',
    arguments: '',
    summary:
      'leaves the controller: removes the key and the certificates of this host, and what the controller has pushed; the host goes by its own files',
    changes: true,
    options: [{ flags: '-y, --yes', description: 'do not ask' }],
    examples: ['agent leave'],
    load: async () => (await import('./commands/agentLeave.ts')).agentLeave,
  },
  {
    name: 'controller token',
    arguments: '',
    summary: 'makes a one-time token with which a host joins, and says what the host types',
    changes: true,
    options: [
      directory,
      {
        flags: '--host-id <uuid>',
        description: 'only for this host, also where it has joined before: its earlier certificates end',
      },
      { flags: '--valid <duration>', description: 'how long it can be used (default: 1h)' },
    ],
    examples: ['controller token --ca /var/lib/stillpoint-controller --valid 30m'],
    load: async () => (await import('./commands/controllerToken.ts')).controllerToken,
  },
  {
    name: 'controller revoke',
    arguments: '',
    summary: 'ends certificates before they expire, such as those of a host that was stolen',
    changes: true,
    options: [
      directory,
      { flags: '--host-id <uuid>', description: 'every certificate of this host' },
      { flags: '--serial <number>', description: 'one certificate, of a host or of the controller' },
    ],
    examples: [
      'controller revoke --ca /var/lib/stillpoint-controller --host-id 5d0c9a3e-6f1b-4c62-9a51-0c8a4be7f201',
    ],
    load: async () => (await import('./commands/controllerRevoke.ts')).controllerRevoke,
  },
];
