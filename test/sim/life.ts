import { AsyncLocalStorage } from 'node:async_hooks';
import fileSystem from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

import type { Hypervisor } from '../../agent/hypervisor/hypervisor.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import type { SimulatedHypervisor } from './simulatedHypervisor.ts';

/** Ends what a killed agent was doing; nothing that it catches or cleans up can act any more. */
export class AgentKilled extends Error {
  constructor() {
    super('the simulated agent is dead');
  }
}

/** A moment at which an agent can be killed: a point of its engine, a call to libvirt, a change of a file. */
export type MomentListener = (moment: string) => Promise<void> | void;

const current = new AsyncLocalStorage<Life>();

/** Everything in Node's file system module that changes something and that the product uses. */
const mutations = [
  'rename',
  'link',
  'rm',
  'unlink',
  'rmdir',
  'mkdir',
  'chmod',
  'chown',
  'copyFile',
  'open',
] as const;

/**
 * One agent's life inside the test's process. After `die` it can change nothing: no file, no row of the
 * journal, no machine; whatever it waits for fails. Files are watched by replacing Node's functions, for what
 * runs inside `live` only.
 */
export class Life {
  readonly #death = Promise.withResolvers<never>();
  readonly #listener: MomentListener;
  /** Changes of files that the system has been asked for and has not answered yet. */
  readonly #changes = new Set<Promise<unknown>>();
  #dead = false;
  #sever: (() => void) | undefined;

  constructor(listener: MomentListener = () => undefined) {
    this.#listener = listener;
    this.#death.promise.catch(() => undefined);
  }

  get isDead(): boolean {
    return this.#dead;
  }

  die(): void {
    this.#dead = true;
    this.#sever?.();
    this.#death.reject(new AgentKilled());
  }

  requireAlive(): void {
    if (this.#dead) throw new AgentKilled();
  }

  /** Runs the agent's own work; `undefined` when it died in it. */
  async live<T>(work: () => Promise<T>): Promise<T | undefined> {
    watchFiles();
    try {
      return await current.run(this, work);
    } catch (error) {
      if (!this.#dead) throw error;
      // What the kernel has begun it ends before a killed process is gone.
      await Promise.allSettled(this.#changes);
      return undefined;
    }
  }

  /** Does a change of a file, at a moment of its own. */
  async change(moment: string, act: () => Promise<unknown>): Promise<unknown> {
    await this.at(moment);
    const change = act();
    this.#changes.add(change);
    try {
      return await change;
    } finally {
      this.#changes.delete(change);
    }
  }

  /** Tells of a moment, at which the listener may kill. */
  async at(moment: string): Promise<void> {
    this.requireAlive();
    // The listener acts for the world, not for the agent.
    await current.exit(() => this.#listener(moment));
    this.requireAlive();
  }

  /** The agent's connection, with a moment before and after each of its calls. */
  hypervisor(connection: SimulatedHypervisor): Hypervisor {
    this.#sever = () => connection.sever();
    return new Proxy<Hypervisor>(connection, {
      get: (target, key) => {
        const member: unknown = Reflect.get(target, key, target);
        if (typeof member !== 'function') return member;
        return (...args: unknown[]) => this.#call(String(key), () => Reflect.apply(member, target, args));
      },
    });
  }

  async #call(operation: string, run: () => unknown): Promise<unknown> {
    await this.at(`libvirt/before:${operation}`);
    const result = await Promise.race([current.exit(run), this.#death.promise]);
    await this.at(`libvirt/after:${operation}`);
    return result;
  }
}

/** A journal that cannot be written by the dead. */
export class MortalJournal extends Journal {
  readonly #life: Life;
  readonly #onWrite: (moment: string) => void;

  /** @param onWrite hears of each durable write, before and after it; it may kill */
  constructor(path: string, life: Life, onWrite: (moment: string) => void = () => undefined) {
    super(path);
    this.#life = life;
    this.#onWrite = onWrite;
  }

  override create(...args: Parameters<Journal['create']>): ReturnType<Journal['create']> {
    return this.#write('create', () => super.create(...args));
  }

  override write(...args: Parameters<Journal['write']>): void {
    this.#write('write', () => super.write(...args));
  }

  override end(...args: Parameters<Journal['end']>): void {
    this.#write('end', () => super.end(...args));
  }

  override takeOver(...args: Parameters<Journal['takeOver']>): boolean {
    return this.#write('takeOver', () => super.takeOver(...args));
  }

  override writeSchedules(...args: Parameters<Journal['writeSchedules']>): void {
    this.#write('writeSchedules', () => super.writeSchedules(...args));
  }

  override forgetSchedules(...args: Parameters<Journal['forgetSchedules']>): void {
    this.#write('forgetSchedules', () => super.forgetSchedules(...args));
  }

  override claimService(...args: Parameters<Journal['claimService']>): boolean {
    return this.#write('claimService', () => super.claimService(...args));
  }

  #write<T>(name: string, act: () => T): T {
    this.#life.requireAlive();
    this.#onWrite(`journal/before:${name}`);
    this.#life.requireAlive();
    const result = act();
    this.#onWrite(`journal/after:${name}`);
    this.#life.requireAlive();
    return result;
  }

  override publishProgress(...args: Parameters<Journal['publishProgress']>): void {
    this.#life.requireAlive();
    super.publishProgress(...args);
  }

  override isCancelRequested(jobId: string): boolean {
    return !this.#life.isDead && super.isCancelRequested(jobId);
  }
}

let watching = false;

function watchFiles(): void {
  if (watching) return;
  watching = true;
  const replacements = mutations.map((name) => {
    const original: (...args: never[]) => Promise<unknown> = fileSystem[name];
    const replacement = async (...args: unknown[]): Promise<unknown> => {
      const life = current.getStore();
      const reads = name === 'open' && !(typeof args[1] === 'string' && /[wax+]/.test(args[1]));
      const act = (): Promise<unknown> => Reflect.apply(original, fileSystem, args);
      return life === undefined || reads ? act() : life.change(`file/${name}`, act);
    };
    return [name, replacement] as const;
  });
  Object.assign(fileSystem, Object.fromEntries(replacements));
  // Named imports of modules that are loaded already see the replacements from here on.
  syncBuiltinESMExports();
}
