import { timingSafeEqual } from 'node:crypto';
import * as z from 'zod';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import type { KeyRing } from './keyRing.ts';
import { configBytesMax, isChunkBytes, packBytesMax } from './limits.ts';
import { hmac } from './seal.ts';

export const configVersion = 1;

/** Features that this version knows; a repository that requires another one is refused (docs/FORMAT.md). */
export const knownFeatures: readonly string[] = [];

const configSchema = z.object({
  format: z.literal('stillpoint-repository'),
  formatVersion: z.number().int(),
  revision: z.number().int().positive(),
  repositoryId: z.uuid(),
  createdAt: z.iso.datetime(),
  keyGeneration: z.number().int().positive(),
  /** Whoever does not know one of them neither reads nor writes. */
  requires: z.array(z.string().max(64)).max(64),
  chunkSizeBytes: z.number().refine(isChunkBytes),
  packSizeBytes: z
    .number()
    .int()
    .min(1024)
    .max(packBytesMax / 2),
  /** What the place of storage was seen to do when the repository was made. */
  capabilities: z.object({
    /** Of several that create one name, exactly one succeeds. */
    createExclusive: z.boolean(),
    /** A listing shows what was created before it. */
    consistentListing: z.boolean(),
    /** What is put under retention cannot be deleted, by anybody; not there: nobody asked. */
    objectLock: z.boolean().optional(),
  }),
});

/** What a repository says of itself, in the open but authenticated. */
export type RepositoryConfig = z.infer<typeof configSchema>;

/** Revisions are numbered, so that the newest is found by asking for names: listings may be stale. */
export function configName(revision: number): string {
  return `config/${String(revision).padStart(8, '0')}`;
}

/** Another copy of a revision; the first one is the revision itself. @param copy from 1 on */
export function configCopyName(revision: number, copy: number): string {
  return copy === 1 ? configName(revision) : `${configName(revision)}.${copy}`;
}

/** A line of JSON, a line with its HMAC. */
export function formatConfig(config: RepositoryConfig, keys: KeyRing): Buffer {
  const line = JSON.stringify(config);
  return Buffer.from(`${line}\n${macOf(line, config.keyGeneration, keys).toString('hex')}\n`);
}

/** A configuration that was read, and not yet believed. */
export interface UnprovedConfig {
  readonly config: RepositoryConfig;
  /** Throws REPOSITORY_DAMAGED unless who wrote it had the keys. */
  prove(keys: KeyRing): RepositoryConfig;
}

/** Reads a configuration. What it requires is looked at before any secret is asked for. */
export function parseConfig(bytes: Buffer, revision: number): UnprovedConfig {
  const what = configName(revision);
  if (bytes.length > configBytesMax) throw damaged(what, `it is longer than ${configBytesMax} bytes`);
  const match = /^([^\n]*)\n([0-9a-f]{64})\n$/.exec(bytes.toString('latin1'));
  if (match === null) throw damaged(what, 'it is not a line of JSON and one of digits');
  const line = Buffer.from(match[1] ?? '', 'latin1');
  const mac = Buffer.from(match[2] ?? '', 'hex');
  const config = parseDocument(line, what, {
    schema: configSchema,
    version: configVersion,
    bytesMax: configBytesMax,
  });
  if (config.revision !== revision) throw damaged(what, 'it has the number of another revision');
  const unknown = config.requires.filter((feature) => !knownFeatures.includes(feature));
  if (unknown.length > 0) {
    throw new RepositoryError('REPOSITORY_TOO_NEW', `the repository requires ${unknown.join(', ')}`, {
      hint: 'use a newer stillpoint for this repository',
    });
  }
  return {
    config,
    prove(keys) {
      if (!timingSafeEqual(mac, macOf(line.toString('utf8'), config.keyGeneration, keys)))
        throw damaged(what, 'it is not authentic');
      return config;
    },
  };
}

function macOf(line: string, generation: number, keys: KeyRing): Buffer {
  return hmac(keys.key(generation, 'config'), Buffer.from(line, 'utf8'));
}

/** The 16 bytes of a UUID. */
export function uuidBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll('-', ''), 'hex');
}
