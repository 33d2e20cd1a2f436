import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { documentPath } from './documents.ts';

void t.test('a document is named where it is, in a checkout, a build and a package', (t) => {
  const root = t.testdir({
    opt: { stillpoint: { lib: {}, 'stillpoint.yaml': '' } },
    usr: {
      lib: { stillpoint: { lib: {} } },
      share: {
        doc: { stillpoint: { docs: { 'POLICIES.md': '' }, examples: { 'stillpoint.yaml': '' } } },
      },
    },
  });
  const built = join(root, 'opt/stillpoint');
  const packaged = join(root, 'usr/lib/stillpoint');
  const docs = join(root, 'usr/share/doc/stillpoint');
  t.ok(existsSync(documentPath('config/stillpoint.yaml')), 'of these sources');
  t.equal(documentPath('config/stillpoint.yaml', built), join(built, 'stillpoint.yaml'));
  t.equal(documentPath('config/stillpoint.yaml', packaged), join(docs, 'examples/stillpoint.yaml'));
  t.equal(documentPath('docs/POLICIES.md', packaged), join(docs, 'docs/POLICIES.md'));
  t.equal(documentPath('docs/POLICIES.md', built), 'docs/POLICIES.md in the sources of Stillpoint');
  t.end();
});
