import { stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { watch } from 'chokidar';
import type { FSWatcher } from 'chokidar';
import { isErrno } from '../common/errors.ts';
import { dropInsOf, loadConfig } from './config.ts';
import type { LoadedConfig } from './config.ts';
import { withPushed } from './hostConfig.ts';
import { type KeptPolicies, PushedFile } from './pushedFile.ts';

/** Editors write in several steps; a configuration is read when nothing has changed for this long. */
const settleMs = 100;

export interface ConfigWatcherListener {
  /** A changed configuration is valid and in force from now on. */
  readonly changed: (loaded: LoadedConfig) => void;
  /** A changed configuration cannot be used (a ConfigError says why); the one before stays in force. */
  readonly refused: (error: unknown) => void;
}

/**
 * The configuration of a service: follows its files and what a controller has pushed, and keeps the last valid content of
 * each, whatever becomes of the other.
 */
export class ConfigWatcher implements AsyncDisposable {
  readonly #path: string;
  readonly #optional: boolean;
  readonly #listener: ConfigWatcherListener;
  readonly #watcher: FSWatcher;
  readonly #pushedFile: PushedFile;
  /** What the files say, without what was pushed. */
  #local: LoadedConfig;
  #kept: KeptPolicies | null;
  #current: LoadedConfig;
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<unknown> = Promise.resolve();

  private constructor(
    { path, optional }: { readonly path: string; readonly optional: boolean },
    { local, current, pushedFile }: Followed,
    watcher: FSWatcher,
    listener: ConfigWatcherListener,
  ) {
    this.#path = path;
    this.#optional = optional;
    this.#pushedFile = pushedFile;
    this.#local = local;
    this.#current = current;
    this.#kept = current.pushed.kept;
    this.#watcher = watcher;
    this.#listener = listener;
    watcher.on('all', () => this.#settle());
    watcher.on('error', (error) => listener.refused(error));
  }

  /**
   * Reads the configuration and follows it from then on.
   *
   * @param options.optional as `loadConfig` has it
   * @param options.stateDir where what was pushed is kept; that of the configuration unless told
   * @throws ConfigError when it is not valid at the start
   */
  static async start(
    configPath: string,
    listener: ConfigWatcherListener,
    { optional = false, stateDir }: { readonly optional?: boolean; readonly stateDir?: string } = {},
  ): Promise<ConfigWatcher> {
    const path = resolve(configPath);
    const local = await loadConfig(path, { optional });
    // A service has its directory for life, whatever its files say later.
    const pushedFile = new PushedFile(stateDir ?? local.config.agent.stateDir);
    const current = withPushed(local, await pushedFile.read());
    const watcher = await watchFilesOf(path, pushedFile.directory);
    try {
      await new Promise<void>((ready, reject) => {
        watcher.once('ready', () => ready());
        watcher.once('error', reject);
      });
      const follower = new ConfigWatcher(
        { path, optional },
        { local, current, pushedFile },
        watcher,
        listener,
      );
      follower.#settle(); // what changed before the watch began
      return follower;
    } catch (error) {
      await watcher.close();
      throw error;
    }
  }

  /** The last valid configuration. */
  get current(): LoadedConfig {
    return this.#current;
  }

  #settle(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      void this.reload();
    }, settleMs);
  }

  /** Reads it at once. @returns what came of it, of which the listener has heard */
  reload(): Promise<'changed' | 'unchanged' | 'refused'> {
    const reloading = this.#reading.then(() => this.#reload());
    this.#reading = reloading;
    return reloading;
  }

  async #reload(): Promise<'changed' | 'unchanged' | 'refused'> {
    const isRefused = !(await this.#readFiles());
    const read = await this.#pushedFile.read();
    // What was pushed counts also while files are wrong.
    const loaded = withPushed(this.#local, read, this.#kept);
    this.#kept = loaded.pushed.kept;
    const isChanged = JSON.stringify(loaded) !== JSON.stringify(this.#current);
    this.#current = loaded;
    if (isChanged) this.#listener.changed(loaded);
    if (isRefused) return 'refused';
    return isChanged ? 'changed' : 'unchanged';
  }

  /** @returns false when they are wrong, of which the listener has heard */
  async #readFiles(): Promise<boolean> {
    try {
      this.#local = await loadConfig(this.#path, { optional: this.#optional });
      return true;
    } catch (error) {
      this.#listener.refused(error);
      return false;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer);
    await this.#watcher.close();
    await this.#reading;
  }
}

interface Followed {
  readonly local: LoadedConfig;
  readonly current: LoadedConfig;
  readonly pushedFile: PushedFile;
}

/** Directories are watched, not files: a rename puts another file under the name. */
async function watchFilesOf(path: string, pushedDirectory: string): Promise<FSWatcher> {
  const isDirectory = await isDirectoryAt(path);
  const directory = isDirectory ? path : dirname(path);
  const dropIns = dropInsOf(path);
  const ignored = (candidate: string): boolean =>
    !isDirectory &&
    ![path, directory, dropIns, pushedDirectory].includes(candidate) &&
    ![dropIns, pushedDirectory].includes(dirname(candidate));
  // Nothing is pushed where the service has not made it.
  const places = (await isDirectoryAt(pushedDirectory)) ? [directory, pushedDirectory] : [directory];
  return watch(places, { depth: isDirectory ? 0 : 1, ignoreInitial: true, ignored });
}

async function isDirectoryAt(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (isErrno(error, 'ENOENT') || isErrno(error, 'ENOTDIR')) return false;
    throw error;
  }
}
