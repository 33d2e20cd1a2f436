import { stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { watch } from 'chokidar';
import type { FSWatcher } from 'chokidar';
import { loadConfig } from './config.ts';
import type { LoadedConfig } from './config.ts';

/** Editors write in several steps; a configuration is read when nothing has changed for this long. */
const settleMs = 100;

export interface ConfigWatcherListener {
  /** A changed configuration is valid and in force from now on. */
  readonly changed: (loaded: LoadedConfig) => void;
  /** A changed configuration cannot be used (a ConfigError says why); the one before stays in force. */
  readonly refused: (error: unknown) => void;
}

/** The configuration of a service: follows its file, and keeps the last valid content of it. */
export class ConfigWatcher implements AsyncDisposable {
  readonly #path: string;
  readonly #listener: ConfigWatcherListener;
  readonly #watcher: FSWatcher;
  #current: LoadedConfig;
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<void> = Promise.resolve();

  private constructor(
    path: string,
    loaded: LoadedConfig,
    watcher: FSWatcher,
    listener: ConfigWatcherListener,
  ) {
    this.#path = path;
    this.#current = loaded;
    this.#watcher = watcher;
    this.#listener = listener;
    watcher.on('all', () => this.#settle());
    watcher.on('error', (error) => listener.refused(error));
  }

  /**
   * Reads the configuration and follows it from then on.
   *
   * @throws ConfigError when it is not valid at the start
   */
  static async start(configPath: string, listener: ConfigWatcherListener): Promise<ConfigWatcher> {
    const path = resolve(configPath);
    const loaded = await loadConfig(path);
    const isDirectory = (await stat(path)).isDirectory();
    // The directory, not the file: a rename puts another file under the name.
    const directory = isDirectory ? path : dirname(path);
    const ignored = (candidate: string): boolean =>
      !isDirectory && candidate !== path && candidate !== directory;
    const watcher = watch(directory, { depth: 0, ignoreInitial: true, ignored });
    try {
      await new Promise<void>((ready, reject) => {
        watcher.once('ready', () => ready());
        watcher.once('error', reject);
      });
      const follower = new ConfigWatcher(path, loaded, watcher, listener);
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
      this.#reading = this.#reading.then(() => this.#reload());
    }, settleMs);
  }

  async #reload(): Promise<void> {
    try {
      const loaded = await loadConfig(this.#path);
      if (JSON.stringify(loaded) === JSON.stringify(this.#current)) return;
      this.#current = loaded;
      this.#listener.changed(loaded);
    } catch (error) {
      this.#listener.refused(error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer);
    await this.#watcher.close();
    await this.#reading;
  }
}
