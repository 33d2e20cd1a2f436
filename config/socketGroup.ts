import { z } from 'zod';

/** `agent.socketGroup`. */
export const socketGroup = z
  .string()
  .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$/, 'expected the name or the number of a group')
  .nullable()
  .default(null)
  .describe(
    'Members of this group may have machines backed up through the socket, and see jobs and backups; null: root alone.',
  );
