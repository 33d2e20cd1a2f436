import { isAbsolute } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa, ExecaError } from 'execa';
import * as z from 'zod';
import { StillpointError } from './errors.ts';

/** `qemu-img` on a hung file system must not hang us for ever. */
const quickDeadlineMs = 60_000;
/** The map of an image with millions of extents; a JavaScript string cannot hold more. */
const outputBytesMax = 500 * 1024 * 1024;

export type QemuImageErrorCode =
  /** `qemu-img` failed or is missing. */
  | 'IMAGE_TOOL_FAILED'
  /** The header says something that no image of a backup may say. */
  | 'IMAGE_UNSUPPORTED';

/** What `qemu-img` reports about an image goes wrong with this. */
export class QemuImageError extends StillpointError<QemuImageErrorCode> {
  constructor(code: QemuImageErrorCode, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, { code, ...options });
  }
}

export type ImageFormat = 'qcow2' | 'raw';

export interface ImageInfo {
  readonly format: ImageFormat;
  readonly virtualSizeBytes: number;
  /** Space that the file takes, holes not counted. */
  readonly allocatedBytes: number;
  /** As the header says it; a relative name is relative to the image's directory. */
  readonly backing: { readonly path: string; readonly format: string | undefined } | null;
  readonly internalSnapshots: readonly string[];
  readonly bitmaps: readonly string[];
  /** Those that are whole as they are stored, and that note what is written from now on. */
  readonly usableBitmaps: readonly string[];
  readonly encrypted: boolean;
  readonly corrupt: boolean;
  /** qcow2 with an external data file: its content is elsewhere. */
  readonly dataFile: string | undefined;
  /** What a qcow2 image is made of. */
  readonly clusterBytes: number | undefined;
  /** Properties that a new image in its place must have too, as `-o` takes them. */
  readonly layout: readonly string[];
  /** qcow2 compatibility level, `0.10` or `1.1`. */
  readonly compat: string | undefined;
}

const infoSchema = z.object({
  'virtual-size': z.number(),
  'actual-size': z.number().optional(),
  format: z.string(),
  encrypted: z.boolean().optional(),
  'cluster-size': z.number().optional(),
  'backing-filename': z.string().optional(),
  'backing-filename-format': z.string().optional(),
  snapshots: z.array(z.object({ name: z.string() })).optional(),
  'format-specific': z
    .object({
      data: z.object({
        compat: z.string().optional(),
        corrupt: z.boolean().optional(),
        'lazy-refcounts': z.boolean().optional(),
        'extended-l2': z.boolean().optional(),
        'refcount-bits': z.number().optional(),
        'data-file': z.string().optional(),
        bitmaps: z.array(z.object({ name: z.string(), flags: z.array(z.string()) })).optional(),
      }),
    })
    .optional(),
});

async function qemuImg(
  args: readonly string[],
  signal?: AbortSignal,
  deadlineMs = quickDeadlineMs,
): Promise<string> {
  try {
    const result = await execa('qemu-img', [...args], {
      timeout: deadlineMs,
      maxBuffer: outputBytesMax,
      stdin: 'ignore',
      // A Ctrl-C is for us: we bring the image in order, and do not let the tool die in the middle of it.
      detached: true,
      ...(signal === undefined ? {} : { cancelSignal: signal }),
    });
    return result.stdout;
  } catch (error) {
    if (!(error instanceof ExecaError)) throw error;
    const reason = error.timedOut
      ? `no answer within ${deadlineMs / 1000} s`
      : (error.stderr || error.shortMessage).trim();
    throw new QemuImageError('IMAGE_TOOL_FAILED', `qemu-img ${args[0]} failed: ${reason}`, {
      cause: error,
      hint: 'try the same by hand: qemu-img info --backing-chain IMAGE; qemu-utils must be installed',
    });
  }
}

const looksMax = 3;
const lookAgainMs = 200;

/** Looks at an image. What its machine writes at that very moment cannot be read: one that is in use is looked at again. */
async function lookAt(
  args: readonly string[],
  options: {
    readonly inUse?: boolean | undefined;
    readonly signal?: AbortSignal | undefined;
    readonly deadlineMs?: number | undefined;
  },
): Promise<string> {
  const { inUse = false, signal, deadlineMs } = options;
  for (let look = 1; ; look += 1) {
    try {
      return await qemuImg(args, signal, deadlineMs);
    } catch (error) {
      const isOver =
        error instanceof QemuImageError && error.cause instanceof ExecaError && error.cause.timedOut;
      if (!inUse || isOver || look === looksMax || signal?.aborted === true) throw error;
    }
    await sleep(lookAgainMs, undefined, { signal });
  }
}

/**
 * Reads an image's header. The format is given, never probed: a guest can write any header into a raw image.
 * @param options.inUse the image is open in a running machine
 * @throws QemuImageError
 */
export async function readImageInfo(
  path: string,
  format: ImageFormat,
  options: { readonly inUse?: boolean } = {},
): Promise<ImageInfo> {
  const share = options.inUse ? ['-U'] : [];
  const output = await lookAt(['info', '--output=json', ...share, '-f', format, plainFile(path)], options);
  const info = infoSchema.parse(JSON.parse(output));
  const data = info['format-specific']?.data;
  const backingPath = info['backing-filename'];
  return {
    format,
    virtualSizeBytes: info['virtual-size'],
    allocatedBytes: info['actual-size'] ?? 0,
    backing:
      backingPath === undefined ? null : { path: backingPath, format: info['backing-filename-format'] },
    internalSnapshots: (info.snapshots ?? []).map((snapshot) => snapshot.name),
    bitmaps: (data?.bitmaps ?? []).map((bitmap) => bitmap.name),
    usableBitmaps: (data?.bitmaps ?? [])
      .filter(({ flags }) => flags.includes('auto') && !flags.includes('in-use'))
      .map(({ name }) => name),
    encrypted: info.encrypted ?? false,
    corrupt: data?.corrupt ?? false,
    dataFile: data?.['data-file'],
    compat: data?.compat,
    clusterBytes: info['cluster-size'],
    layout: [
      ...(info['cluster-size'] === undefined ? [] : [`cluster_size=${info['cluster-size']}`]),
      ...(data?.['refcount-bits'] === undefined ? [] : [`refcount_bits=${data['refcount-bits']}`]),
      ...(data?.['lazy-refcounts'] ? ['lazy_refcounts=on'] : []),
      ...(data?.['extended-l2'] ? ['extended_l2=on'] : []),
    ],
  };
}

/** Removes a persistent bitmap, also a broken one, from an image that nobody has open. @throws QemuImageError */
export async function removeBitmap(image: string, name: string): Promise<void> {
  await qemuImg(['bitmap', '--remove', '-f', 'qcow2', plainFile(image), name]);
}

/** What is wrong in a qcow2 image's own books. */
export interface ImageCheck {
  /** Clusters and tables that are not what the image says of them. */
  readonly errors: number;
  /** Clusters that take space and belong to nothing: what a QEMU that is killed leaves behind. No harm to data. */
  readonly leaks: number;
}

const checkSchema = z.object({
  'check-errors': z.number(),
  corruptions: z.number().default(0),
  leaks: z.number().default(0),
});

/** Looks for errors in a qcow2 image that nobody has open. @throws QemuImageError */
export async function checkImage(
  image: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<ImageCheck> {
  const found = checkSchema.parse(JSON.parse(await outputOfCheck(image, options)));
  return { errors: found['check-errors'] + found.corruptions, leaks: found.leaks };
}

async function outputOfCheck(
  image: string,
  { signal, deadlineMs }: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<string> {
  try {
    return await qemuImg(['check', '--output=json', '-f', 'qcow2', plainFile(image)], signal, deadlineMs);
  } catch (error) {
    // It ends with 1 (some of it could not be looked at), 2 or 3 when it has found something, and says what.
    const cause = error instanceof QemuImageError ? error.cause : undefined;
    if (!(cause instanceof ExecaError) || cause.isTerminated) throw error;
    const stdout = String(cause.stdout);
    if (!stdout.trimStart().startsWith('{')) throw error;
    return stdout;
  }
}

/** Frees what has leaked in a qcow2 image that nobody has open and that has no errors. @throws QemuImageError */
export async function freeLeaks(
  image: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<void> {
  await qemuImg(
    ['check', '-q', '-r', 'leaks', '-f', 'qcow2', plainFile(image)],
    options.signal,
    options.deadlineMs,
  );
}

/** Adds an empty persistent bitmap that records from the next opening on. @throws QemuImageError */
export async function addBitmap(image: string, name: string): Promise<void> {
  await qemuImg(['bitmap', '--add', '-f', 'qcow2', plainFile(image), name]);
}

/** Creates an empty qcow2 image over `backing`, without opening the backing image (it may be in use). */
export async function createOverlay(
  path: string,
  backing: { readonly path: string; readonly format: ImageFormat },
  virtualSizeBytes: number,
  layout: readonly string[] = [],
): Promise<void> {
  // compat 1.1 is needed for more than features: zeroed clusters must be distinguishable from unallocated ones.
  const options = ['-o', ['compat=1.1', ...layout].join(',')];
  const over = ['-u', '-F', backing.format, '-b', backing.path];
  await qemuImg(['create', '-q', '-f', 'qcow2', ...options, ...over, path, String(virtualSizeBytes)]);
}

/** Rewrites only the header: the image's content shows through as if `backing` had always been below it. */
export async function setBackingHeader(
  image: string,
  backing: { readonly path: string; readonly format: string },
): Promise<void> {
  await qemuImg(['rebase', '-q', '-u', '-f', 'qcow2', '-F', backing.format, '-b', backing.path, image]);
}

/**
 * Copies into `image` what it needs from the chain down to (not including) `newBacking`; `null`: everything.
 * For an image that nobody has open.
 */
export async function rebaseImage(
  image: string,
  newBacking: { readonly path: string; readonly format: string } | null,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<void> {
  const onto = newBacking === null ? ['-b', ''] : ['-F', newBacking.format, '-b', newBacking.path];
  await qemuImg(['rebase', '-q', '-f', 'qcow2', ...onto, image], options.signal, options.deadlineMs);
}

/**
 * Writes what `top` holds into `base`, an image below it; `top` stays as it is. For images that nobody has open.
 * Interrupted, it can be begun again.
 */
export async function commitImage(
  top: string,
  base: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<void> {
  const args = ['commit', '-q', '-d', '-f', 'qcow2', '-b', base, plainFile(top)];
  await qemuImg(args, options.signal, options.deadlineMs);
}

/** Writes the whole content of a chain as a new standalone qcow2 image. */
export async function flattenImage(
  from: string,
  to: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number; readonly inUse?: boolean },
): Promise<void> {
  const share = options.inUse ? ['-U'] : [];
  const args = ['convert', ...share, '-f', 'qcow2', '-O', 'qcow2', plainFile(from), to];
  await qemuImg(args, options.signal, options.deadlineMs);
}

/** Writes a standalone qcow2 image anew as a raw one, sparse; `to` must not exist. */
export async function convertToRaw(
  from: string,
  to: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<void> {
  const args = ['convert', '-f', 'qcow2', '-O', 'raw', plainFile(from), to];
  await qemuImg(args, options.signal, options.deadlineMs);
}

/** Whether a raw image holds what a qcow2 image holds, byte for byte. @throws QemuImageError when it cannot tell */
export async function sameContent(
  qcow2: string,
  raw: string,
  options: { readonly signal?: AbortSignal; readonly deadlineMs: number },
): Promise<boolean> {
  const args = ['compare', '-q', '-f', 'qcow2', '-F', 'raw', plainFile(qcow2), plainFile(raw)];
  try {
    await qemuImg(args, options.signal, options.deadlineMs);
    return true;
  } catch (error) {
    const differ =
      error instanceof QemuImageError && error.cause instanceof ExecaError && error.cause.exitCode === 1;
    if (differ) return false;
    throw error;
  }
}

/** A run of an image's bytes as `qemu-img map` tells it. */
export interface ImageExtent {
  readonly start: number;
  readonly length: number;
  /** How deep in the chain it is found; 0 is the image itself. */
  readonly depth: number;
  /** Found in some image of the chain (data or explicit zeros), not just read as zero because nothing has it. */
  readonly present: boolean;
  readonly data: boolean;
  readonly zero: boolean;
}

const extentsSchema = z.array(
  z.object({
    start: z.number(),
    length: z.number(),
    depth: z.number(),
    present: z.boolean(),
    data: z.boolean(),
    zero: z.boolean(),
  }),
);

/** The allocation of an image (chain). */
export async function readImageMap(
  path: string,
  format: ImageFormat,
  options: { readonly inUse?: boolean; readonly signal?: AbortSignal; readonly deadlineMs?: number } = {},
): Promise<readonly ImageExtent[]> {
  const share = options.inUse ? ['-U'] : [];
  const args = ['map', '--output=json', ...share, '-f', format, plainFile(path)];
  const deadlineMs = options.deadlineMs ?? 600_000;
  return extentsSchema.parse(JSON.parse(await lookAt(args, { ...options, deadlineMs })));
}

/** Keeps `qemu-img` from reading a name as a protocol (`nbd:…`, `json:{…}`). */
function plainFile(path: string): string {
  if (!isAbsolute(path)) {
    throw new QemuImageError('IMAGE_UNSUPPORTED', `not an absolute path: ${path}`);
  }
  return path;
}
