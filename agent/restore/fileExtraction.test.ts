import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FaultyFiles } from '../../test/sim/faultyFiles.ts';
import { FileExtraction } from './fileExtraction.ts';
import type { GuestFile, GuestFileKind, GuestTree } from './guestTree.ts';

/** What a guest claims to have: bytes of a file, where a link leads, what is in a directory. */
type Claim = Buffer | string | ReadonlyMap<string, Claim>;

/** A guest that claims whatever the test wants. A claim that is there twice is one inode. */
class ClaimedTree implements GuestTree {
  readonly #claims: Claim[] = [];

  file(name: string, claim: Claim): GuestFile {
    const known = this.#claims.indexOf(claim);
    const inode = known === -1 ? this.#claims.push(claim) - 1 : known;
    const kind: GuestFileKind =
      typeof claim === 'string' ? 'link' : Buffer.isBuffer(claim) ? 'file' : 'directory';
    const sizeBytes = Buffer.isBuffer(claim) ? claim.length : 0;
    return { name, kind, inode, uid: 1000, gid: 1000, mode: 0o755, sizeBytes };
  }

  root(): Promise<GuestFile> {
    return Promise.resolve(this.file('', new Map()));
  }

  list({ inode }: GuestFile): Promise<readonly GuestFile[]> {
    const claim = this.#claims[inode];
    const entries = claim instanceof Map ? [...claim] : [];
    return Promise.resolve(entries.map(([name, inside]) => this.file(name, inside)));
  }

  details({ inode }: GuestFile) {
    const claim = this.#claims[inode];
    return Promise.resolve({ modifiedAt: new Date(0), leadsTo: typeof claim === 'string' ? claim : null });
  }

  async *content({ inode }: GuestFile): AsyncGenerator<Buffer> {
    const claim = this.#claims[inode];
    if (Buffer.isBuffer(claim)) yield await Promise.resolve(claim);
  }
}

async function directoryFor(test: Test): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'sp-extraction-'));
  test.teardown(() => rm(directory, { recursive: true }));
  return directory;
}

/** Takes out what a guest claims, under its path. */
async function extract(to: string, path: string, claim: Claim, force = false) {
  const tree = new ClaimedTree();
  const extraction = new FileExtraction(tree, { to, force, signal: new AbortController().signal });
  await extraction.extract(path, tree.file(path, claim));
  return extraction.extracted;
}

void t.test('a file is whole also where the system takes less at a time than it is given', async (t) => {
  const to = await directoryFor(t);
  const content = Buffer.alloc(200_000, 'abcdefg');
  using files = new FaultyFiles(to);
  await files.run(null, [], () => extract(to, '/first', content));
  const writes = files.calls.flatMap(({ operation }, at) => (operation === 'write' ? at : []));
  for (const at of writes) {
    const name = `file-${at}`;
    const short = { errno: null, when: 'half' } as const;
    await files.run(at, [short], () => extract(to, `/${name}`, content));
    t.equal(files.failed?.operation, 'write');
    t.ok((await readFile(join(to, name))).equals(content));
  }
  t.equal(writes.length, 4);
});
