import { once } from 'node:events';
import { messageOf } from '../../common/errors.ts';
import type { LoadedConfig } from '../../config/config.ts';
import { withoutLifelong } from '../../config/lifelong.ts';
import type { Config } from '../../config/schema.ts';
import { loadHostConfig } from '../../config/hostConfig.ts';
import { ConfigWatcher } from '../../config/watcher.ts';
import type { ServiceContext } from './service.ts';
import { pause } from '../../common/wake.ts';

/** After this long a configuration that cannot be watched is tried again. */
const againMs = 60_000;

export type ReloadContext = Pick<
  ServiceContext,
  'loaded' | 'configPath' | 'log' | 'signal' | 'follow' | 'figures'
> &
  Partial<Pick<ServiceContext, 'pushed'>>;

/**
 * Follows the configuration until `signal`: whenever its files change, or somebody pushes policies, and at SIGHUP. A valid one is in force for
 * everything that begins from then on, an invalid one is refused, told once, and the one before stays.
 */
export async function followConfiguration(context: ReloadContext): Promise<void> {
  const { signal } = context;
  const follower = new ConfigFollower(context);
  // Its default would end the service in the middle of what it does.
  const onHangup = (): void => void follower.reload();
  process.on('SIGHUP', onHangup);
  const { pushed } = context;
  if (pushed !== undefined) pushed.follow = () => follower.takePushed();
  try {
    while (!signal.aborted && !(await follower.watch())) await pause(againMs, signal);
    if (!signal.aborted) await once(signal, 'abort');
  } finally {
    if (pushed !== undefined) pushed.follow = null;
    await follower.end();
    process.off('SIGHUP', onHangup);
  }
}

class ConfigFollower {
  readonly #context: ReloadContext;
  /** What the service goes by. */
  #config: Config;
  #watcher: ConfigWatcher | undefined;
  #refusal: string | undefined;
  /** What is valid and could not be followed: its files need not change for it to be tried again. */
  #unfollowed: LoadedConfig | undefined;
  #following: Promise<void> = Promise.resolve();

  constructor(context: ReloadContext) {
    this.#context = context;
    this.#config = context.loaded.config;
  }

  /** @returns false where it cannot be watched now */
  async watch(): Promise<boolean> {
    const { configPath, loaded } = this.#context;
    const listener = {
      changed: (changed: LoadedConfig) => this.#take(changed),
      refused: (error: unknown) => this.#refuse(error),
    };
    try {
      // Files that were there at the start and are not any more are no reason to forget all policies.
      const optional = loaded.files.length === 0;
      const { stateDir } = loaded.config.agent;
      this.#watcher = await ConfigWatcher.start(configPath, listener, { optional, stateDir });
    } catch (error) {
      this.#refuse(error);
      return false;
    }
    // It may have changed since the service read it.
    if (JSON.stringify(this.#watcher.current) !== JSON.stringify(loaded)) this.#take(this.#watcher.current);
    return true;
  }

  /** Something was pushed. Returns when it is in force, or it was told why it is not; never rejects. */
  async takePushed(): Promise<void> {
    if (this.#watcher === undefined) await this.#takeUnwatched();
    else await this.#watcher.reload();
    await this.#following;
  }

  /** While the files cannot be watched they are read. */
  async #takeUnwatched(): Promise<void> {
    const { configPath, loaded } = this.#context;
    try {
      this.#take(await loadHostConfig(configPath, { optional: loaded.files.length === 0 }));
    } catch (error) {
      this.#refuse(error);
    }
  }

  /** Somebody asks for it: whatever comes of it is told. */
  async reload(): Promise<void> {
    const { log } = this.#context;
    this.#refusal = undefined;
    if (this.#watcher === undefined) {
      log.warn('the configuration cannot be read again yet');
      return;
    }
    if ((await this.#watcher.reload()) !== 'unchanged') return;
    await this.#following;
    if (this.#unfollowed === undefined) log.info('the configuration has not changed');
    else this.#take(this.#unfollowed);
  }

  async end(): Promise<void> {
    await this.#watcher?.[Symbol.asyncDispose]();
    await this.#following;
  }

  #take(loaded: LoadedConfig): void {
    this.#refusal = undefined;
    this.#following = this.#following.then(() => this.#follow(loaded));
  }

  /** Never rejects. */
  async #follow(loaded: LoadedConfig): Promise<void> {
    const { config: wanted, files, pushed } = loaded;
    const { log, follow } = this.#context;
    const { config, kept } = withoutLifelong(this.#config, wanted);
    try {
      const limits = await follow({ config, pushed });
      this.#config = config;
      this.#unfollowed = undefined;
      this.#tell(true);
      const pushedRevision = pushed.kept?.revision;
      log.info(
        { files, pushedRevision, limits },
        'a changed configuration is in force for what begins from now on',
      );
      for (const problem of pushed.problems) log.warn({ problem }, 'some of what was pushed cannot be used');
    } catch (error) {
      this.#unfollowed = loaded;
      this.#tell(false);
      log.error(
        { err: error },
        'a changed configuration could not be followed; the one before stays in force',
      );
    }
    if (kept.length > 0) log.warn({ keys: kept }, 'some of what has changed needs a restart of the service');
  }

  /** For the metrics. */
  #tell(ok: boolean): void {
    const { figures } = this.#context;
    const reload = { ok, atMs: Date.now() };
    if (figures !== undefined) figures.configReload = () => reload;
  }

  /** Editors write in several steps, each of which is noticed. */
  #refuse(error: unknown): void {
    const text = messageOf(error);
    if (text === this.#refusal) return;
    this.#refusal = text;
    this.#tell(false);
    this.#context.log.error(
      { err: error },
      'a changed configuration is refused; the one before stays in force',
    );
  }
}
