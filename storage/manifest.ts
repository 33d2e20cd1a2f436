import { createHash } from 'node:crypto';
import { normalize } from 'node:path';
import * as z from 'zod';
import { type DigestKind, sumsSizeBytes } from '../common/chunkSums.ts';
import { StorageError } from './errors.ts';

/** Version of the manifest that this code writes; a reader refuses a higher one. */
export const manifestFormatVersion = 1;

/** Name of the file that makes a directory a backup. */
export const manifestFileName = 'manifest.json';

/** No honest manifest is larger; a larger file is not read. */
export const maxManifestBytes = 4 * 1024 * 1024;

/**
 * A file name inside a backup: one component, never a separator, `.`, `..` or the manifest itself. A leading
 * dot is fine (a machine may be called `.hidden`), our temporary names (`.….tmp`) are not.
 */
export const artifactFileName = z
  .string()
  .max(255)
  .regex(/^[A-Za-z0-9._%~-]+$/)
  .refine((name) => name !== '.' && name !== '..' && name !== manifestFileName && !name.endsWith('.tmp'));
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const sizeBytes = z.number().int().nonnegative();
const target = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);
const absolutePath = z
  .string()
  .startsWith('/')
  .refine((path) => !path.includes('\0') && normalize(path) === path);

const networkAddress = z.string().regex(/^[a-z0-9+-]+:\/\/[^\0\n]*$/);

const volume = z.strictObject({
  target,
  file: artifactFileName,
  format: z.enum(['qcow2', 'raw']),
  virtualSizeBytes: sizeBytes,
  /** Length of the stored file (holes counted). */
  storedBytes: sizeBytes,
  /** By chunks: SHA-256 of what `split -b 1M --filter=sha256sum FILE` prints, which is kept as FILE.sums. */
  sha256,
  /** What the image was on its host; a file unless told. */
  kind: z.enum(['block', 'network']).optional(),
  /** It is stored as it stood: who has not its key cannot read it. */
  encrypted: z.literal(true).optional(),
  /** Path of the image on its host, for a restore in place; of a network volume its address. */
  source: z.union([absolutePath, networkAddress]),
  owner: z.strictObject({
    uid: sizeBytes.max(0xffffffff),
    gid: sizeBytes.max(0xffffffff),
    mode: sizeBytes.max(0o7777),
  }),
  read: z.enum(['full', 'increment']),
  /** Id of the backup of the same storage that an increment was made of; it is not needed any more. */
  parent: z.string().optional(),
  /** Why it was read in full. */
  reason: z.string().optional(),
});

/** As libvirt allows them; files are named after it. */
const machineName = z.string().regex(/^[^/\n\0]{1,250}$/, 'not a name of a machine');

/** Files of the host that a machine starts with, or keeps something in. */
export const extraFile = z.strictObject({
  kind: z.enum(['nvram', 'tpm', 'kernel', 'initrd', 'dtb', 'loader']),
  file: artifactFileName,
  sizeBytes,
  sha256,
  /** Where it stood on its host. */
  source: absolutePath,
});

/** Definitions, as libvirt prints them, of what a machine uses or had: for a host that is built again. */
export const extraDefinition = z.strictObject({
  kind: z.enum(['network', 'pool', 'snapshot']),
  file: artifactFileName,
  sizeBytes,
  sha256,
  /** Name of the network, pool or snapshot. */
  name: z.string().min(1),
});

const extra = z.discriminatedUnion('kind', [extraFile, extraDefinition]);

/** Its fields; those of a repository have the same, but for its files. */
export const manifestShape = z.strictObject({
  formatVersion: z.literal(manifestFormatVersion),
  id: z.uuid(),
  writer: z.string(),
  // libvirt takes any 128 bits for a machine's UUID.
  machine: z.strictObject({ name: machineName, uuid: z.guid() }),
  host: z.strictObject({ name: z.string(), libvirt: z.string(), qemu: z.string() }),
  pointInTime: z.iso.datetime({ precision: 3 }),
  mode: z.enum(['live', 'save', 'disk', 'offline']),
  modeReason: z.string(),
  /** Name of the libvirt checkpoint that marks this T1: an increment can start from it. */
  checkpoint: z.string().optional(),
  consistency: z.enum(['memory', 'filesystem', 'crash', 'offline']),
  /** Why it is not more, or how it was reached. */
  consistencyReason: z.string().optional(),
  pauseMs: z.number().nonnegative().nullable(),
  /** How long the guest's writes waited for its frozen file systems at the most. */
  freezeMs: z.number().nonnegative().optional(),
  /** Backups of several machines that were made at this same T1, by the names of the machines. */
  group: z.strictObject({ id: z.uuid(), machines: z.array(z.string().min(1)).min(2) }).optional(),
  volumes: z.array(volume).min(1),
  memory: z
    .strictObject({
      file: artifactFileName,
      sizeBytes,
      sha256,
      /** vCPUs were running at T1. */
      running: z.boolean(),
    })
    .optional(),
  definition: z.strictObject({ file: artifactFileName, sha256, autostart: z.boolean() }),
  extras: z.array(extra),
  steps: z.array(z.strictObject({ name: z.string(), durationMs: z.number().nonnegative() })),
  labels: z.record(z.string(), z.string()),
});

/** A backup as `manifest.json` describes it. */
export const manifestSchema = manifestShape
  .refine((manifest) => isUnique(manifest.volumes.map((item) => item.target)), 'a volume is named twice')
  .refine((manifest) => isUnique(artifactsOf(manifest).map((item) => item.file)), 'a file is named twice');

export type Manifest = z.infer<typeof manifestShape>;
export type ManifestVolume = Manifest['volumes'][number];
export type ManifestExtra = Manifest['extras'][number];

/** Extras that were files of the host. */
export type ManifestFileExtra = z.infer<typeof extraFile>;

export function isFileExtra(one: ManifestExtra): one is ManifestFileExtra {
  return 'source' in one;
}

/** The UEFI variables of a backup. */
export function nvramOf({ extras }: Pick<Manifest, 'extras'>): ManifestFileExtra | undefined {
  return extras.filter(isFileExtra).find(({ kind }) => kind === 'nvram');
}

/** One stored file as the manifest describes it. */
export interface Artifact {
  readonly kind: 'volume' | 'sums' | 'memory' | 'definition' | ManifestExtra['kind'];
  readonly file: string;
  /** `null` where the manifest does not say (the definition). */
  readonly sizeBytes: number | null;
  readonly sha256: string;
  /** What the digest is of. */
  readonly digest: DigestKind;
}

/** Where the digests of a volume's chunks are kept. The digest of this small file is that of the volume. */
export function sumsFileOf(volumeFile: string): string {
  return `${volumeFile}.sums`;
}

/** Every file that belongs to a backup, beside the manifest itself. */
export function artifactsOf(
  manifest: Pick<Manifest, 'volumes' | 'memory' | 'definition' | 'extras'>,
): readonly Artifact[] {
  return [
    ...manifest.volumes.flatMap((item): readonly Artifact[] => [
      {
        kind: 'volume',
        file: item.file,
        sizeBytes: item.storedBytes,
        sha256: item.sha256,
        digest: 'chunks',
      },
      {
        kind: 'sums',
        file: sumsFileOf(item.file),
        sizeBytes: sumsSizeBytes(item.storedBytes),
        sha256: item.sha256,
        digest: 'whole',
      },
    ]),
    ...(manifest.memory === undefined
      ? []
      : [
          {
            kind: 'memory',
            file: manifest.memory.file,
            sizeBytes: manifest.memory.sizeBytes,
            sha256: manifest.memory.sha256,
            digest: 'whole',
          } as const,
        ]),
    {
      kind: 'definition',
      file: manifest.definition.file,
      sizeBytes: null,
      sha256: manifest.definition.sha256,
      digest: 'whole',
    },
    ...manifest.extras.map(
      ({ kind, file, sizeBytes: size, sha256: digest }): Artifact => ({
        kind,
        file,
        sizeBytes: size,
        sha256: digest,
        digest: 'whole',
      }),
    ),
  ];
}

/**
 * Reads a manifest that may come from anybody.
 *
 * @throws StorageError MANIFEST_INVALID, MANIFEST_TOO_NEW
 */
export function parseManifest(text: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalid(`it is not JSON (${error instanceof Error ? error.message : String(error)})`, error);
  }
  const version = z.object({ formatVersion: z.number().int().positive() }).safeParse(value);
  if (version.success && version.data.formatVersion > manifestFormatVersion) {
    throw new StorageError(
      'MANIFEST_TOO_NEW',
      `the manifest has format version ${version.data.formatVersion}; this version reads up to ${manifestFormatVersion}`,
      { hint: 'use a newer stillpoint for this backup' },
    );
  }
  const { manifestSha256, ...described } = z.looseObject({}).catch({}).parse(value);
  if (manifestSha256 !== manifestDigest(described))
    throw invalid('its own digest (manifestSha256) differs: it was damaged, or changed by hand');
  const result = manifestSchema.safeParse(described);
  if (result.success) return result.data;
  const problems = result.error.issues
    .slice(0, 3)
    .map((issue) => `${issue.path.join('.') || 'the whole'}: ${issue.message}`);
  throw invalid(problems.join('; '), result.error);
}

/** SHA-256 of everything else that a manifest says, as JSON with two spaces: a flipped bit in it is seen too. */
export function manifestDigest(described: object): string {
  return createHash('sha256')
    .update(JSON.stringify(described, null, 2))
    .digest('hex');
}

/** The text of a manifest as it is stored. Throws MANIFEST_INVALID for one that no reader would accept. */
export function formatManifest(manifest: Manifest): string {
  const text = `${JSON.stringify({ ...manifest, manifestSha256: manifestDigest(manifest) }, null, 2)}\n`;
  if (Buffer.byteLength(text) > maxManifestBytes)
    throw invalid(`it is larger than ${maxManifestBytes} bytes`);
  parseManifest(text);
  return text;
}

function invalid(reason: string, cause?: unknown): StorageError {
  return new StorageError('MANIFEST_INVALID', `the manifest is not valid: ${reason}`, {
    cause,
    hint: 'the files of the backup may still be good: see the manual, "Restore by hand"',
  });
}

function isUnique(names: readonly string[]): boolean {
  return new Set(names).size === names.length;
}
