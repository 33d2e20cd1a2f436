import { existsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** The sources; of a bundle the directory of the program, whose modules are in its `lib`. */
const ownRoot = join(import.meta.dirname, '..');

/** What is told of where nothing was installed beside the program. */
const elsewhere = 'in the sources of Stillpoint';

/**
 * Where somebody who runs this program finds a document, for hints: beside the sources, beside a program that was
 * built, or where the Debian package puts it.
 *
 * @param document its path in the sources: `docs/POLICIES.md`, `config/stillpoint.yaml`
 * @param root where this program is, unless it is told
 */
export function documentPath(document: string, root = ownRoot): string {
  const isExample = dirname(document) === 'config';
  const packaged = join(root, '../../share/doc/stillpoint');
  const places = [
    join(root, document),
    join(root, basename(document)),
    join(packaged, isExample ? 'examples' : 'docs', basename(document)),
  ];
  return places.find((place) => existsSync(place)) ?? `${document} ${elsewhere}`;
}
