import * as z from 'zod';

/** Which storage of a group a backup goes to, and why not to those before it. */
export const storageChoiceSchema = z.object({
  group: z.string(),
  storage: z.string(),
  /** Those that come first in the group, and could not be used. */
  passedOver: z.array(z.object({ storage: z.string(), code: z.string(), message: z.string() })),
});

export type StorageChoice = z.infer<typeof storageChoiceSchema>;

/** Where a backup goes. */
export interface ChosenStorages {
  /** Names, each once, in the order in which they were asked for. */
  readonly storages: string[];
  /** One for each storage group among what was asked for. */
  readonly storageChoices: StorageChoice[];
}

/** A choice in words. */
export function describeChoice({ group, storage, passedOver }: StorageChoice): string {
  if (passedOver.length === 0) return `${storage} is the first of storage group ${group}, and can be used`;
  const reasons = passedOver.map(
    ({ storage: name, code, message }) => `${name} cannot be used (${code}: ${message})`,
  );
  return `${storage} stands in, in storage group ${group}: ${reasons.join('; ')}`;
}
