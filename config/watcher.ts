import { stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { watch } from 'chokidar';
import type { FSWatcher } from 'chokidar';
import { isErrno } from '../common/errors.ts';
import { dropInsOf, loadConfig } from './config.ts';
import type { LoadedConfig } from './config.ts';

/** Editors write in several steps; a configuration is read when nothing has changed for this long. */
const settleMs = 100;

export interface ConfigWatcherListener {
  /** A changed configuration is valid and in force from now on. */
  readonly changed: (loaded: LoadedConfig) => void;
  /** A changed configuration cannot be used (a ConfigError says why); the one before stays in force. */
  readonly refused: (error: unknown) => void;
}

/** The configuration of a service: follows its files, and keeps the last valid content of them. */
export class ConfigWatcher implements AsyncDisposable {
  readonly #path: string;
  readonly #optional: boolean;
  readonly #listener: ConfigWatcherListener;
  readonly #watcher: FSWatcher;
  #current: LoadedConfig;
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<unknown> = Promise.resolve();

  private constructor(
    { path, optional }: { readonly path: string; readonly optional: boolean },
    loaded: LoadedConfig,
    watcher: FSWatcher,
    listener: ConfigWatcherListener,
  ) {
    this.#path = path;
    this.#optional = optional;
    this.#current = loaded;
    this.#watcher = watcher;
    this.#listener = listener;
    watcher.on('all', () => this.#settle());
    watcher.on('error', (error) => listener.refused(error));
  }

  /**
   * Reads the configuration and follows it from then on.
   *
   * @param options.optional as `loadConfig` has it
   * @throws ConfigError when it is not valid at the start
   */
  static async start(
    configPath: string,
    listener: ConfigWatcherListener,
    { optional = false }: { readonly optional?: boolean } = {},
  ): Promise<ConfigWatcher> {
    const path = resolve(configPath);
    const loaded = await loadConfig(path, { optional });
    const watcher = await watchFilesOf(path);
    try {
      await new Promise<void>((ready, reject) => {
        watcher.once('ready', () => ready());
        watcher.once('error', reject);
      });
      const follower = new ConfigWatcher({ path, optional }, loaded, watcher, listener);
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
    try {
      const loaded = await loadConfig(this.#path, { optional: this.#optional });
      if (JSON.stringify(loaded) === JSON.stringify(this.#current)) return 'unchanged';
      this.#current = loaded;
      this.#listener.changed(loaded);
      return 'changed';
    } catch (error) {
      this.#listener.refused(error);
      return 'refused';
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer);
    await this.#watcher.close();
    await this.#reading;
  }
}

/** The directory is watched, not the file: a rename puts another file under the name. */
async function watchFilesOf(path: string): Promise<FSWatcher> {
  const isDirectory = await isDirectoryAt(path);
  const directory = isDirectory ? path : dirname(path);
  const dropIns = dropInsOf(path);
  const ignored = (candidate: string): boolean =>
    !isDirectory && ![path, directory, dropIns].includes(candidate) && dirname(candidate) !== dropIns;
  return watch(directory, { depth: isDirectory ? 0 : 1, ignoreInitial: true, ignored });
}

async function isDirectoryAt(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return false;
    throw error;
  }
}
