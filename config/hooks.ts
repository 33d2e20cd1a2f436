import * as z from 'zod';

const isClean = (text: string): boolean => !text.includes('\0');
const command = z
  .array(z.string('expected a list of texts').refine(isClean, 'an argument cannot hold a NUL byte'))
  .min(1, 'expected a program and its arguments')
  .refine(
    ([program]) => program === undefined || program.startsWith('/'),
    'expected the absolute path of a program first',
  )
  .describe(
    'A program by its absolute path, and its arguments; no shell reads it. It and the directories above it must belong to root and be writable by nobody else, which is looked at each time.',
  );

const ofEveryHook = {
  command,
  deadlineSeconds: z
    .int('expected a whole number, without a unit')
    .positive()
    .max(86_400, 'expected 86400 or less')
    .default(60)
    .describe('After so many seconds it is ended, with everything that it has started.'),
};

/** Programs that run beside the backups of a policy. */
export const hooks = z
  .strictObject({
    preBackup: z
      .strictObject({
        ...ofEveryHook,
        whenItFails: z
          .enum(['abort', 'continue'], { error: 'expected abort or continue' })
          .default('abort')
          .describe('abort: no backup is made then; continue: it is made all the same, with a warning.'),
      })
      .optional()
      .describe('Before the machine is looked at.'),
    postBackup: z
      .strictObject(ofEveryHook)
      .optional()
      .describe('When the job has ended, however it did: STILLPOINT_STATE says how.'),
    onFailure: z
      .strictObject(ofEveryHook)
      .optional()
      .describe('When the job failed, or is left with work that needs somebody.'),
  })
  .prefault({})
  .describe('Programs that run before and after each backup, outside of every pause.');
