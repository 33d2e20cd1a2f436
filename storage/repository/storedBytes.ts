import type { Backend, CallOptions } from '../backends/backend.ts';
import { prefixes } from './names.ts';

/** What all objects of a repository take, as its place lists them: also what no index names. */
export async function storedBytesOf(backend: Pick<Backend, 'list'>, options?: CallOptions): Promise<number> {
  let bytes = 0;
  for (const prefix of Object.values(prefixes))
    for await (const { sizeBytes } of backend.list(prefix, options)) bytes += sizeBytes;
  return bytes;
}
