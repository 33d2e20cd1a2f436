import { attribute, child, parseDocument, text } from './domainDom.ts';

/** Kinds of storage pools whose volumes are files of a directory. */
const directoryPools = ['dir', 'fs', 'netfs'];

/**
 * The directory that holds the volumes of a storage pool as files; `undefined` for pools of another kind.
 * @throws DomainXmlError XML_INVALID
 */
export function poolDirectoryOf(definition: string): string | undefined {
  const pool = parseDocument(definition, 'pool').documentElement ?? undefined;
  if (!directoryPools.includes(attribute(pool, 'type') ?? '')) return undefined;
  return text(child(pool, 'target', 'path'));
}
