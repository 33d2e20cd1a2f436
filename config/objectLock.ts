import * as z from 'zod';

/** A section of a repository on S3: how long nobody can delete what its backups need. */
export const objectLock = z
  .strictObject({
    days: z
      .int('expected a whole number of days')
      .min(1, 'expected at least 1')
      .max(36_500, 'expected at most 36500')
      .describe('So many days from the commit of each backup on.'),
  })
  .optional()
  .describe(
    's3: nobody can delete a backup, or what it needs, before its time is over, neither with the credentials of this host nor with its key: object lock in compliance mode. The bucket must have it, and the server must enforce it, which `stillpoint storage init` and `storage check` find out by trying.',
  );
