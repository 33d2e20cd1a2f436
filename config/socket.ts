import { dirname, normalize } from 'node:path';
import * as z from 'zod';
import { absolutePath } from './path.ts';

/** What the service would open for others there is not its own. */
const sharedDirectories = new Set(
  '/ /etc /home /mnt /opt /root /run /run/libvirt /srv /tmp /var /var/lib /var/run /var/tmp'.split(' '),
);

/** `agent.socket`. */
export const socket = absolutePath
  .refine(
    (path) => !sharedDirectories.has(dirname(normalize(path))),
    'expected a path in a directory that is for Stillpoint alone, such as /run/stillpoint/agent.sock',
  )
  .default('/run/stillpoint/agent.sock')
  .describe(
    'Where the service listens. Its directory is for Stillpoint alone: the sockets of backups are made there, and others are let through it.',
  );

/** `agent.socketGroup`. */
export const socketGroup = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$/, 'expected the name or the number of a group')
  .nullable()
  .default(null)
  .describe(
    'Members of this group may have machines backed up through the socket, and see jobs and backups; null: root alone.',
  );
