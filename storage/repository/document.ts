import * as z from 'zod';
import { damaged } from './errors.ts';
import { checkVersion } from './packFormat.ts';

/** What a JSON document must be. */
export interface DocumentRules<Shape> {
  readonly schema: z.ZodType<Shape>;
  /** The newest `formatVersion` that is known. */
  readonly version: number;
  readonly bytesMax: number;
}

/**
 * Reads a JSON document that may come from anybody. Fields that are not known are ignored: whatever a reader must
 * understand is told by the version and by required features.
 *
 * @throws RepositoryError REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW
 */
export function parseDocument<Shape>(bytes: Buffer, what: string, rules: DocumentRules<Shape>): Shape {
  if (bytes.length > rules.bytesMax) throw damaged(what, `it is longer than ${rules.bytesMax} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw damaged(what, 'it is not JSON', error);
  }
  const version = z.object({ formatVersion: z.number().int().nonnegative() }).safeParse(value);
  if (!version.success) throw damaged(what, 'it has no version', version.error);
  checkVersion(version.data.formatVersion, rules.version, what);
  const result = rules.schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues
    .slice(0, 3)
    .map((issue) => `${issue.path.join('.') || 'the whole'}: ${issue.message}`);
  throw damaged(what, problems.join('; '), result.error);
}
