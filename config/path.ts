import * as z from 'zod';

/** Where something is on the host. */
export const absolutePath = z
  .string('expected an absolute path')
  .startsWith('/', 'expected an absolute path')
  .refine((path) => !path.includes('\0'), 'a path cannot hold a NUL byte');
