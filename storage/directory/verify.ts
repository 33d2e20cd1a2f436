import { join } from 'node:path';
import { hashFile } from '../../common/copy.ts';
import { errorRecord } from '../../common/errors.ts';
import { readImageInfo } from '../../common/qemuImage.ts';
import { throttleOf } from '../../common/throttle.ts';
import { artifactsOf, manifestFileName } from '../manifest.ts';
import type { Artifact, Manifest, ManifestVolume } from '../manifest.ts';
import type { FileReport, FileVerdict, VerifyOptions, VerifyReport } from '../storage.ts';
import { lstatOrNull, readManifest } from './entries.ts';
import { readQcow2Header } from './qcow2Header.ts';

interface Finding {
  readonly verdict: FileVerdict;
  readonly detail: string | null;
}

const fine: Finding = { verdict: 'ok', detail: null };

/** Compares a backup's directory with its manifest, which is read anew. */
export async function verifyDirectory(
  directory: string,
  expected: { readonly id: string | null; readonly pointInTime: string },
  options: VerifyOptions,
): Promise<VerifyReport> {
  const about = { file: manifestFileName, kind: 'manifest' } as const;
  const unusable = (verdict: FileVerdict, detail: string): VerifyReport => ({
    id: expected.id,
    ok: false,
    data: options.data,
    files: [{ ...about, verdict, detail }],
  });
  let manifest: Manifest;
  try {
    manifest = await readManifest(directory);
  } catch (error) {
    const { code, message } = errorRecord(error);
    return unusable(code === 'FILE_MISSING' ? 'missing' : 'unreadable', message);
  }
  if (new Date(manifest.pointInTime).getTime() !== new Date(expected.pointInTime).getTime()) {
    return unusable(
      'structure',
      `it is of another point in time than its directory: ${manifest.pointInTime}`,
    );
  }
  const files: FileReport[] = [{ ...about, ...fine }];
  const progress = new Progress(manifest, options);
  for (const artifact of artifactsOf(manifest)) {
    options.signal?.throwIfAborted();
    const finding = await verifyArtifact(directory, artifact, manifest, progress, options);
    files.push({ file: artifact.file, kind: artifact.kind, ...finding });
    progress.fileDone(artifact);
  }
  return { id: manifest.id, ok: files.every(({ verdict }) => verdict === 'ok'), data: options.data, files };
}

/** Bytes verified so far over all files, for the one who waits. */
class Progress {
  readonly #options: VerifyOptions;
  readonly #bytesTotal: number;
  #bytesBefore = 0;

  constructor(manifest: Manifest, options: VerifyOptions) {
    this.#options = options;
    this.#bytesTotal = artifactsOf(manifest).reduce((sum, { sizeBytes }) => sum + (sizeBytes ?? 0), 0);
  }

  inFile(bytesDone: number): void {
    const done = Math.min(this.#bytesBefore + bytesDone, this.#bytesTotal);
    this.#options.onProgress?.({ bytesDone: done, bytesTotal: this.#bytesTotal });
  }

  fileDone(artifact: Artifact): void {
    this.#bytesBefore += artifact.sizeBytes ?? 0;
    this.inFile(0);
  }
}

async function verifyArtifact(
  directory: string,
  artifact: Artifact,
  manifest: Manifest,
  progress: Progress,
  options: VerifyOptions,
): Promise<Finding> {
  const path = join(directory, artifact.file);
  try {
    const status = await lstatOrNull(path);
    if (status === null) return { verdict: 'missing', detail: null };
    if (!status.isFile()) return { verdict: 'unreadable', detail: 'it is not a regular file' };
    if (artifact.sizeBytes !== null && status.size !== artifact.sizeBytes) {
      return { verdict: 'size', detail: `${status.size} bytes instead of ${artifact.sizeBytes}` };
    }
    const volume = manifest.volumes.find(({ file }) => file === artifact.file);
    const structure = volume === undefined ? null : await problemOfImage(path, volume);
    // These are small, and the length of the definition is not in the manifest: their digests always count.
    if (options.data || artifact.sizeBytes === null || artifact.kind === 'sums') {
      const { sha256 } = await hashFile(path, {
        signal: options.signal,
        throttle: throttleOf(options.hold, options.throttle),
        digest: artifact.digest,
        onProgress: (bytesDone) => progress.inFile(bytesDone),
      });
      if (sha256 !== artifact.sha256) {
        return { verdict: 'digest', detail: `SHA-256 is ${sha256} instead of ${artifact.sha256}` };
      }
    }
    return structure === null ? fine : { verdict: 'structure', detail: structure };
  } catch (error) {
    if (options.signal?.aborted) throw error;
    return { verdict: 'unreadable', detail: errorRecord(error).message };
  }
}

/** What keeps an image from being the standalone volume that the manifest describes; `null`: nothing. */
async function problemOfImage(path: string, volume: ManifestVolume): Promise<string | null> {
  if (volume.format === 'raw') {
    return volume.storedBytes === volume.virtualSizeBytes
      ? null
      : `a raw volume of ${volume.virtualSizeBytes} bytes has ${volume.storedBytes}`;
  }
  const header = await readQcow2Header(path);
  if (header === null) return 'it is not a qcow2 image';
  if (header.hasBackingFile) return 'it needs a backing file';
  if (header.hasDataFile) return 'it keeps its data in another file';
  if (header.isEncrypted && volume.encrypted !== true) return 'it is encrypted';
  if (header.isCorrupt) return 'it is marked corrupt';
  if (header.virtualSizeBytes !== BigInt(volume.virtualSizeBytes)) {
    return `its virtual size is ${header.virtualSizeBytes} instead of ${volume.virtualSizeBytes}`;
  }
  // Only now, when the header names nothing else: qemu-img looks at the tables behind the header.
  try {
    const info = await readImageInfo(path, 'qcow2');
    return info.corrupt ? 'it is marked corrupt' : null;
  } catch (error) {
    return errorRecord(error).message;
  }
}
