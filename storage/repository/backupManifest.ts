import * as z from 'zod';
import { extraDefinition, extraFile, manifestShape } from '../manifest.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { chunkIdBytes } from './chunkId.ts';
import { isChunkBytes, manifestBytesMax, objectBytesMax } from './limits.ts';
import { knownFeatures } from './repositoryConfig.ts';

const manifestVersion = 1;

const contentSchema = z.object({
  /** Id of the root of the stream. */
  root: z.string().regex(new RegExp(`^[0-9a-f]{${chunkIdBytes * 2}}$`)),
  sizeBytes: z.number().int().nonnegative(),
  chunkSizeBytes: z.number().refine(isChunkBytes),
});

/** A stream, as a manifest refers to it. */
export type ContentReference = z.infer<typeof contentSchema>;

const { volumes } = manifestShape.shape;
const ofAFile = { file: true, sha256: true, sizeBytes: true } as const;
const { shape: common } = manifestShape.omit({ volumes: true, memory: true, definition: true, extras: true });

/** With fields that are not known ignored, as everywhere in a repository: a later writer may say more. */
const { machine, host, group, steps } = common;
const { owner } = volumes.element.shape;
const openShape = {
  ...common,
  machine: z.object(machine.shape),
  host: z.object(host.shape),
  group: z.object(group.unwrap().shape).optional(),
  steps: z.array(z.object(steps.element.shape)),
};

const shape = z.object({
  ...openShape,
  requires: z.array(z.string().max(64)).max(64),
  volumes: z
    .array(
      z.object({
        ...volumes.element.omit({ file: true, sha256: true }).shape,
        owner: z.object(owner.shape),
        content: contentSchema,
      }),
    )
    .min(1),
  memory: z.object({ content: contentSchema, running: z.boolean() }).optional(),
  definition: z.object({ content: contentSchema, autostart: z.boolean() }),
  extras: z.array(
    z.discriminatedUnion('kind', [
      z.object({ ...extraFile.omit(ofAFile).shape, content: contentSchema }),
      z.object({ ...extraDefinition.omit(ofAFile).shape, content: contentSchema }),
    ]),
  ),
});

const schema = shape
  .refine(
    ({ volumes: all }) => new Set(all.map(({ target }) => target)).size === all.length,
    'a volume is named twice',
  )
  .refine(
    ({ volumes: all }) =>
      all.every(
        ({ content, virtualSizeBytes, encrypted }) =>
          encrypted === true || content.sizeBytes === virtualSizeBytes,
      ),
    'a volume has another size than its content',
  );

/** A backup as a repository describes it (docs/FORMAT.md, "Manifests"). */
export type BackupManifest = z.infer<typeof shape>;

/** A stream of a backup, and what it is. */
export interface BackupContent {
  /** For people, such as `volume vda`. */
  readonly name: string;
  readonly kind: 'volume' | 'memory' | 'definition' | BackupManifest['extras'][number]['kind'];
  readonly content: ContentReference;
}

/** Every stream of a backup. */
export function contentsOf(manifest: BackupManifest): readonly BackupContent[] {
  return [
    ...manifest.volumes.map(
      ({ target, content }) => ({ name: `volume ${target}`, kind: 'volume', content }) as const,
    ),
    ...(manifest.memory === undefined
      ? []
      : [{ name: 'memory', kind: 'memory' as const, content: manifest.memory.content }]),
    { name: 'definition', kind: 'definition' as const, content: manifest.definition.content },
    ...manifest.extras.map(({ kind, content }) => ({ name: kind, kind, content })),
  ];
}

/** Throws REPOSITORY_DAMAGED for what no reader would accept. */
export function encodeManifest(manifest: BackupManifest): Buffer {
  const bytes = Buffer.from(JSON.stringify(manifest), 'utf8');
  decodeManifest(bytes, `manifest of backup ${manifest.id}`);
  return bytes;
}

/** @throws RepositoryError REPOSITORY_DAMAGED, REPOSITORY_TOO_NEW */
export function decodeManifest(bytes: Buffer, what: string): BackupManifest {
  const bytesMax = Math.min(manifestBytesMax, objectBytesMax);
  const required = z.object({ requires: z.array(z.string()) });
  const { requires } = parseDocument(bytes, what, { schema: required, version: manifestVersion, bytesMax });
  const unknown = requires.filter((feature) => !knownFeatures.includes(feature));
  if (unknown.length > 0) {
    throw new RepositoryError('REPOSITORY_TOO_NEW', `${what} requires ${unknown.join(', ')}`, {
      hint: 'use a newer stillpoint for this backup',
    });
  }
  return parseDocument(bytes, what, { schema, version: manifestVersion, bytesMax });
}

/** Throws REPOSITORY_DAMAGED unless a manifest is the one of this backup. */
export function assertBackupId(manifest: BackupManifest, backupId: string, what: string): void {
  if (manifest.id !== backupId) throw damaged(what, 'it is the manifest of another backup');
}
