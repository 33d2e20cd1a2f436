import * as z from 'zod';
import { StorageError } from './errors.ts';
import { artifactFileName, manifestDigest } from './manifest.ts';

/** Version of the manifest of a host's backup. */
export const hostManifestVersion = 1;

/** Name of the file that makes a directory the backup of a host. */
export const hostManifestFileName = 'host.json';

const item = z.strictObject({
  kind: z.enum(['machine', 'network', 'pool', 'nwfilter', 'secret', 'configuration']),
  name: z.string().min(1),
  uuid: z.guid().optional(),
  file: artifactFileName,
  sizeBytes: z.int().nonnegative(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  /** Absent where nothing is started. */
  autostart: z.boolean().optional(),
});

const hostManifestSchema = z.strictObject({
  formatVersion: z.literal(hostManifestVersion),
  kind: z.literal('host'),
  id: z.uuid(),
  writer: z.string(),
  host: z.strictObject({ name: z.string().min(1), libvirt: z.string(), qemu: z.string() }),
  pointInTime: z.iso.datetime({ precision: 3 }),
  items: z.array(item),
});

/** The backup of a host's definitions as `host.json` describes it. */
export type HostManifest = z.infer<typeof hostManifestSchema>;
export type HostItem = HostManifest['items'][number];

/** The text of a manifest as it is stored, with a digest of itself. */
export function formatHostManifest(manifest: HostManifest): string {
  return `${JSON.stringify({ ...manifest, manifestSha256: manifestDigest(manifest) }, null, 2)}\n`;
}

/** @throws StorageError MANIFEST_INVALID */
export function parseHostManifest(text: string): HostManifest {
  const invalid = (why: string, cause?: unknown): StorageError =>
    new StorageError('MANIFEST_INVALID', `the manifest of the host's backup is not valid: ${why}`, {
      cause,
      hint: 'the files beside it may still be good: each is a definition as virsh prints it',
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalid('it is not JSON', error);
  }
  const { manifestSha256, ...described } = z.looseObject({}).catch({}).parse(value);
  if (manifestSha256 !== manifestDigest(described)) throw invalid('its own digest differs');
  const result = hostManifestSchema.safeParse(described);
  if (result.success) return result.data;
  throw invalid(result.error.issues[0]?.message ?? 'of another form', result.error);
}
