import * as z from 'zod';
import { messageOf } from '../../common/errors.ts';
import { type CallOptions, listAll } from '../backends/backend.ts';
import { formatHostManifest, type HostManifest, parseHostManifest } from '../hostManifest.ts';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { objectBytesMax } from './limits.ts';
import { backupIdOf, hostName, prefixes } from './names.ts';
import { getObject, putObject, type RepositoryContext } from './objects.ts';

const schema = z.object({ manifest: z.string(), files: z.record(z.string(), z.string()) });

/** The backup of a host's definitions, whole: it is small. */
export interface StoredHost {
  readonly id: string;
  readonly manifest: HostManifest | null;
  readonly files: Readonly<Record<string, string>>;
  /** Why it cannot be used. */
  readonly problem: string | null;
}

/** Stores the backup of a host. Repeating it finds itself. */
export async function putHost(
  context: RepositoryContext,
  manifest: HostManifest,
  files: ReadonlyMap<string, string>,
  call: CallOptions = {},
): Promise<void> {
  const record = {
    formatVersion: 1,
    manifest: formatHostManifest(manifest),
    files: Object.fromEntries(files),
  };
  const name = hostName(manifest.id);
  if ((await putObject(context, 'host', name, Buffer.from(JSON.stringify(record)), call)) === 'taken')
    throw damaged(name, 'its place is taken by something else');
}

/** Every backup of a host; damaged ones hide no others. */
export async function listHosts(
  context: RepositoryContext,
  call: CallOptions = {},
): Promise<readonly StoredHost[]> {
  const hosts: StoredHost[] = [];
  for (const { name } of await listAll(context.backend, prefixes.hosts, call)) {
    const id = backupIdOf(name, prefixes.hosts);
    const host = id === null ? null : await readHost(context, id, call);
    if (host !== null) hosts.push(host);
  }
  return hosts;
}

/** One of them, or `null` when there is none of this id. */
export async function readHost(
  context: RepositoryContext,
  id: string,
  call: CallOptions = {},
): Promise<StoredHost | null> {
  const name = hostName(id);
  try {
    const object = await getObject(context, name, ['host'], call);
    if (object === null) return null;
    const record = parseDocument(object.content, name, { schema, version: 1, bytesMax: objectBytesMax });
    const manifest = parseHostManifest(record.manifest);
    if (manifest.id !== id) throw damaged(name, 'it is the backup of another host');
    return { id, manifest, files: record.files, problem: null };
  } catch (error) {
    if (!(error instanceof RepositoryError) && !isInvalid(error)) throw error;
    return { id, manifest: null, files: {}, problem: messageOf(error) };
  }
}

export async function deleteHost(
  context: RepositoryContext,
  id: string,
  call: CallOptions = {},
): Promise<void> {
  await context.backend.delete(hostName(id), call);
}

function isInvalid(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'MANIFEST_INVALID';
}
