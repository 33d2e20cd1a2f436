import * as z from 'zod';

/** The machines whose backups have the same T1, as each of their jobs knows them. */
export const groupSchema = z.object({ id: z.uuid(), machines: z.array(z.string()) });

export type BackupGroup = z.infer<typeof groupSchema>;
