import { hash } from 'node:crypto';
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { Bandwidth } from '../../common/bandwidth.ts';
import { chunkBytes, parseSums } from '../../common/chunkSums.ts';
import { cloneFile, copyFileDurable, type HashResult } from '../../common/copy.ts';
import { isErrno } from '../../common/errors.ts';
import { removeUnfinished } from '../../common/files.ts';
import type { Extent, VolumeSource } from '../../common/volumeSource.ts';
import { sumsFileOf } from '../manifest.ts';
import type { AddOptions } from '../storage.ts';
import { ChunkDamaged, EditedFile } from './editedFile.ts';
import { Qcow2Editor } from './qcow2Editor.ts';
import { ImageUnsuitable } from './qcow2Geometry.ts';
import { Run } from '../run.ts';
import { blockBytes, type Piece, readInOrder } from './sourceReader.ts';

/** Nothing can be built on this parent; the message says why. The volume must be read in full. */
export class ParentUnusable extends Error {}

/** A stored volume that an increment starts from. */
export interface StoredParent {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of its chunks, as its manifest has it. */
  readonly sha256: string;
}

/**
 * Writes a volume as a new standalone image: what an earlier backup stored, with the stretches that have changed
 * since. Shares the blocks of the parent where the file system can; otherwise copies it, comparing every chunk. The
 * parent is only read. The data is on the disk when it returns, the name is not. Removes its own unfinished file when
 * it fails or is aborted.
 *
 * @param changes all stretches in which the volume may differ from its parent, in order
 * @param to must not exist
 * @throws ParentUnusable; SourceFailure; the reason of `signal`; EEXIST, ENOSPC, … of the system
 */
export async function writeIncrement(
  source: VolumeSource,
  changes: readonly Extent[],
  parent: StoredParent,
  to: string,
  options: AddOptions = {},
): Promise<HashResult> {
  options.signal?.throwIfAborted();
  const sums = await readSums(parent);
  await copyParent(parent, to, options);
  try {
    const file = await open(to, 'r+');
    try {
      return await changeCopy(file, source, changes, { ...parent, sums }, options);
    } catch (error) {
      if (error instanceof ChunkDamaged || error instanceof ImageUnsuitable)
        throw new ParentUnusable(`${parent.path}: ${error.message}`, { cause: error });
      throw error;
    } finally {
      await file.close();
    }
  } catch (error) {
    await removeUnfinished(to);
    throw error;
  }
}

async function readSums(parent: StoredParent): Promise<readonly string[]> {
  const path = sumsFileOf(parent.path);
  try {
    const text = await readFile(path, 'utf8');
    const sums = hash('sha256', text, 'hex') === parent.sha256 ? parseSums(text) : null;
    if (sums === null) throw new ParentUnusable(`${path} is damaged`);
    return sums;
  } catch (error) {
    if (isErrno(error, 'ENOENT')) throw new ParentUnusable(`${path} is missing`, { cause: error });
    throw error;
  }
}

async function copyParent(parent: StoredParent, to: string, options: AddOptions): Promise<void> {
  try {
    if (await cloneFile(parent.path, to, 0o600)) return;
    const { signal, limit, throttle } = options;
    const copied = await copyFileDurable({
      from: parent.path,
      to,
      mode: 0o600,
      digest: 'chunks',
      // Several machines may be at it at a time.
      pieceBytes: chunkBytes,
      signal,
      limit,
      throttle,
      // Signs of life; what is counted is what is read from the guest.
      onProgress: () => options.onProgress?.(0),
    });
    if (copied.sha256 === parent.sha256) return;
    await removeUnfinished(to);
    throw new ParentUnusable(`${parent.path} is not what was stored: its digest differs`);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
    throw new ParentUnusable(`${parent.path} is missing`, { cause: error });
  }
}

async function changeCopy(
  file: FileHandle,
  source: VolumeSource,
  changes: readonly Extent[],
  parent: StoredParent & { readonly sums: readonly string[] },
  options: AddOptions,
): Promise<HashResult> {
  const { size } = await file.stat();
  if (size !== parent.sizeBytes)
    throw new ParentUnusable(`${parent.path} has ${size} bytes instead of ${parent.sizeBytes}`);
  const chunks = new EditedFile(file, size, parent.sums);
  const editor = await Qcow2Editor.open(chunks);
  if (editor.virtualSizeBytes !== source.virtualSizeBytes)
    throw new ParentUnusable(
      `the volume has ${source.virtualSizeBytes} bytes, and had ${editor.virtualSizeBytes}`,
    );
  const run = new Run(options.signal);
  try {
    await applyChanges(editor, source, changes, run, options);
    run.signal.throwIfAborted();
    if (options.ownership !== undefined) {
      await file.chown(options.ownership.uid, options.ownership.gid); // first: it clears set-id bits
      await file.chmod(options.ownership.mode);
    }
    const sums = await chunks.finish();
    return { sizeBytes: chunks.sizeBytes, sha256: hash('sha256', sums, 'hex'), sums };
  } catch (error) {
    run.fail(error);
    throw run.signal.reason;
  } finally {
    await chunks.close();
  }
}

/** Zeros first: what they free is used for what is new. */
async function applyChanges(
  editor: Qcow2Editor,
  source: VolumeSource,
  changes: readonly Extent[],
  run: Run,
  options: AddOptions,
): Promise<void> {
  const bandwidth = new Bandwidth(options.limit);
  for (const { offsetBytes, lengthBytes, zero } of changes) {
    run.signal.throwIfAborted();
    if (zero) await editor.zero(offsetBytes, lengthBytes);
    options.onProgress?.(0);
  }
  let doneBytes = 0;
  for await (const { piece, block } of readInOrder(source, piecesOf(changes), run)) {
    await bandwidth.take(block.length, run.signal);
    await editor.write(piece.offsetBytes, block);
    doneBytes += block.length;
    options.onProgress?.(doneBytes);
    await options.throttle?.take(block.length, run.signal);
  }
  await bandwidth.take(0, run.signal);
}

function* piecesOf(changes: readonly Extent[]): Generator<Piece> {
  for (const { offsetBytes, lengthBytes, zero } of changes) {
    if (zero) continue;
    for (let done = 0; done < lengthBytes; done += blockBytes)
      yield { offsetBytes: offsetBytes + done, lengthBytes: Math.min(blockBytes, lengthBytes - done) };
  }
}
