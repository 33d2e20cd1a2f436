import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import { messageOf } from '../../common/errors.ts';
import { NbdError } from '../../nbd/errors.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import { SnapshotError } from './errors.ts';
import type { ReadVolume } from './readPlan.ts';

/** QEMU, `qemu-nbd` and a server of ours answer a read slower than this only when what they read from hangs. */
export const answerMs = 120_000;

/** `qemu-nbd` opens an image, also a long chain, faster than this. */
const openMs = 30_000;
const retryMs = 20;

/** What is served: a file, unless its kind says otherwise. */
type ExportedImage = Pick<ReadVolume, 'target' | 'file' | 'format'> & Partial<Pick<ReadVolume, 'kind'>>;

/**
 * Serves an image that no machine runs, read-only, by a `qemu-nbd` of our own, and opens it. The image is not
 * locked: its owner may start the machine at any time, which the caller must notice. `qemu-nbd` ends with its last
 * client, and with us.
 */
export class ImageExport implements AsyncDisposable {
  readonly volume: NbdVolume;
  readonly #server: Server;
  readonly #socket: string;

  private constructor(volume: NbdVolume, server: Server, socket: string) {
    this.volume = volume;
    this.#server = server;
    this.#socket = socket;
  }

  /**
   * @param options.bitmap a persistent one of the image, served as `storedDirtyContextOf(bitmap)`
   * @param directory where the socket is made; it exists and is ours alone
   * @throws SnapshotError CANNOT_EXPORT_IMAGE; or the reason of `signal`
   */
  static async open(image: ExportedImage, directory: string, options: ExportOptions): Promise<ImageExport> {
    const socket = join(directory, image.target);
    await rm(socket, { force: true });
    const server = serve(image, socket, options.bitmap);
    try {
      return new ImageExport(await connect(socket, image.target, server, options), server, socket);
    } catch (error) {
      server.kill('SIGKILL');
      const stderr = await server.ended;
      options.signal.throwIfAborted();
      throw new SnapshotError(
        'CANNOT_EXPORT_IMAGE',
        `${image.file} cannot be served: ${stderr || messageOf(error)}`,
        {
          cause: error,
          hint: `qemu-utils must be installed; try: qemu-img check -f ${image.format} ${image.file}`,
        },
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.volume[Symbol.asyncDispose]();
    this.#server.kill('SIGKILL');
    await this.#server.ended;
    await rm(this.#socket, { force: true });
  }
}

export interface ExportOptions {
  readonly answerMs: number;
  readonly signal: AbortSignal;
  readonly bitmap?: string | undefined;
}

/** The NBD context of a bitmap that is stored in an image, as `qemu-nbd` names it. */
export function storedDirtyContextOf(bitmap: string): string {
  return `qemu:dirty-bitmap:${bitmap}`;
}

/** A running `qemu-nbd`. */
interface Server {
  kill(signal: NodeJS.Signals): void;
  hasEnded(): boolean;
  /** What it had to say. */
  readonly ended: Promise<string>;
}

function serve(image: ExportedImage, socket: string, bitmap: string | undefined): Server {
  // What it reads can wait for what machines do.
  const idle = ['--class', 'idle', '--ignore'];
  // It dies with us even when we are killed before we are its client.
  const server = ['setpriv', '--pdeathsig', 'KILL', 'qemu-nbd', '--read-only', '--shared=8'];
  const where = ['--export-name', image.target, '--socket', socket, '--image-opts', imageOptions(image)];
  const changes = bitmap === undefined ? [] : ['--bitmap', bitmap];
  const child = execa('ionice', [...idle, ...server, ...changes, ...where], {
    stdin: 'ignore',
    stdout: 'ignore',
    // A Ctrl-C is for us.
    detached: true,
    reject: false,
  });
  let ended = false;
  const end = child.then(({ stderr, originalMessage }) => {
    ended = true;
    return (stderr || originalMessage || '').trim();
  });
  return { kill: (signal) => void child.kill(signal), hasEnded: () => ended, ended: end };
}

/** A comma separates options; in a file's name it is doubled. */
function imageOptions({ file, format, kind }: ExportedImage): string {
  const path = file.replaceAll(',', ',,');
  const driver = kind === 'block' ? 'host_device' : 'file';
  return `driver=${format},force-share=on,read-only=on,file.driver=${driver},file.filename=${path}`;
}

/** The socket is there as soon as the server has the image open. */
async function connect(
  socketPath: string,
  exportName: string,
  server: Server,
  { bitmap, ...options }: ExportOptions,
): Promise<NbdVolume> {
  const dirtyContexts = bitmap === undefined ? [] : [storedDirtyContextOf(bitmap)];
  const deadline = performance.now() + openMs;
  for (;;) {
    try {
      return await NbdVolume.open({ socketPath, exportName, dirtyContexts, ...options });
    } catch (error) {
      const notYet = error instanceof NbdError && error.code === 'NBD_UNREACHABLE';
      if (!notYet || server.hasEnded() || performance.now() > deadline) throw error;
    }
    await sleep(retryMs, undefined, { signal: options.signal });
  }
}
