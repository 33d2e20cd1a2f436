import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { readdir, readlink } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import nodeFiles from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno } from '../../common/errors.ts';
import { isBelow } from '../../common/files.ts';

/** What the system does with one call. */
export interface FileFault {
  /** `null`: it succeeds, with fewer bytes than it was given. */
  readonly errno: string | null;
  /**
   * `before`: nothing happens; `after`: it happens, and its answer is an error all the same, as on a network mount that
   * loses it; `half`: half of the bytes are written, or read; `turned` (of `write`, with a position): it succeeds, and
   * the first byte is another one, as on a device that keeps something else than it was given.
   */
  readonly when: 'before' | 'after' | 'half' | 'turned';
  /** The file system is broken from then on: what is called later fails with this. */
  readonly afterwards?: string;
}

/** A call below the root, as the product made it. */
export interface FileCall {
  readonly operation: string;
  /** What it is about: of link and rename the new name. */
  readonly path: string;
  readonly fault: FileFault | null;
}

function turnByte(path: string, position: number): void {
  const file = openSync(path, 'r+');
  try {
    const byte = Buffer.alloc(1);
    readSync(file, byte, 0, 1, position);
    writeSync(file, Buffer.from([byte.readUInt8() ^ 0x40]), 0, 1, position);
  } finally {
    closeSync(file);
  }
}

type Operation = (...args: unknown[]) => Promise<unknown>;

const byPath =
  'access chmod chown copyFile link lstat mkdir open readFile readdir realpath rename rm rmdir stat statfs unlink writeFile'.split(
    ' ',
  );
const byHandle = 'chmod chown close datasync read readFile stat sync truncate write writeFile'.split(' ');
/** Those whose second argument is the name that comes into being. */
const makingSecond = new Set(['copyFile', 'link', 'rename']);
const withBytes = new Set(['read', 'write', 'writeFile']);

/** Calls that cannot fail for want of room, nor because the file system may only be read. */
const readingOperations = new Set('access lstat read readFile readdir realpath stat statfs'.split(' '));

/**
 * Stands between the product and the file system, by replacing what `node:fs/promises` gives out: nothing of the product
 * is bent for it. Calls about paths below a root are counted, and one of them goes wrong as it is told to. Threads and
 * other processes are not reached.
 */
export class FaultyFiles {
  readonly #root: string;
  readonly #originals = new Map<string, Operation>();
  #calls: FileCall[] = [];
  #plan: { readonly at: number; readonly faults: readonly FileFault[] } | null = null;
  /** What went wrong has broken the file system. */
  #afterwards: string | null = null;

  /** @param root an absolute path */
  constructor(root: string) {
    this.#root = root;
    const functions = operationsOf(nodeFiles);
    for (const name of byPath) {
      const original = functions[name];
      if (original === undefined) throw new Error(`node:fs/promises has no ${name}`);
      this.#originals.set(name, original);
      functions[name] = async (...args) => this.#callByPath(name, original, args);
    }
    syncBuiltinESMExports();
  }

  /** Gives the file system back. */
  [Symbol.dispose](): void {
    const functions = operationsOf(nodeFiles);
    for (const [name, original] of this.#originals) functions[name] = original;
    syncBuiltinESMExports();
  }

  /** Since the last `run`. */
  get calls(): readonly FileCall[] {
    return this.#calls;
  }

  /** The call that went wrong in the last `run`. */
  get failed(): FileCall | null {
    return this.#calls.find(({ fault }) => fault !== null) ?? null;
  }

  /**
   * Does something while one call goes wrong, with the first fault that it can have: no room is of no concern to what
   * only reads.
   * @param at number of the call, from 0 on; `null`: none
   */
  async run<T>(at: number | null, faults: readonly FileFault[], work: () => Promise<T>): Promise<T> {
    this.#calls = [];
    this.#plan = at === null ? null : { at, faults };
    try {
      return await work();
    } finally {
      this.#plan = null;
      this.#afterwards = null;
    }
  }

  async #callByPath(name: string, original: Operation, args: unknown[]): Promise<unknown> {
    const path = String(args[makingSecond.has(name) ? 1 : 0]);
    if (path !== this.#root && !isBelow(this.#root, path)) return original(...args);
    const result = await this.#call(name, path, () => original(...args), args);
    if (name === 'open' && typeof result === 'object' && result !== null) this.#watch(result, path);
    return result;
  }

  #watch(handle: object, path: string): void {
    const methods = operationsOf(handle);
    for (const name of byHandle) {
      const original = methods[name]?.bind(handle);
      if (original === undefined) throw new Error(`a FileHandle has no ${name}`);
      methods[name] = async (...args) => {
        const act = (changed: unknown[]) => original(...changed);
        return this.#call(name, path, act, args);
      };
    }
  }

  async #call(
    operation: string,
    path: string,
    act: (args: unknown[]) => Promise<unknown>,
    args: unknown[],
  ): Promise<unknown> {
    const fault = this.#faultOf(operation, args);
    const number = this.#calls.push({ operation, path, fault: null }) - 1;
    if (fault === null) return act(args);
    if (fault.when === 'turned') {
      this.#calls[number] = { operation, path, fault };
      const written = await act(args);
      turnByte(path, Number(args[3]));
      return written;
    }
    if (fault.when === 'half' && fault.errno === null) {
      this.#calls[number] = { operation, path, fault };
      return act(halved(operation, args));
    }
    if (fault.when === 'half') await act(halved(operation, args));
    // One that fails by itself has its own answer. A descriptor is gone whatever close(2) says of it.
    if (fault.when === 'after' || operation === 'close') await dropped(operation, await act(args));
    this.#calls[number] = { operation, path, fault };
    throw systemError(fault.errno ?? 'EIO', operation, path);
  }

  #faultOf(operation: string, args: readonly unknown[]): FileFault | null {
    // What close(2) says is what a write before it has said already.
    if (this.#afterwards !== null && operation !== 'close') {
      const later: FileFault = { errno: this.#afterwards, when: 'before' };
      return isPossible(operation, later, args) ? later : null;
    }
    if (this.#plan?.at !== this.#calls.length) return null;
    const fault = this.#plan.faults.find((candidate) => isPossible(operation, candidate, args)) ?? null;
    this.#afterwards = fault?.afterwards ?? null;
    return fault;
  }
}

/**
 * Paths below a directory that this process has open and goes on having open: what was under way beside a call that
 * failed, such as another pack, comes to its own end first.
 */
export async function openBelow(root: string): Promise<readonly string[]> {
  for (const deadline = performance.now() + 5000; ; await sleep(5)) {
    const found = await openNow(root);
    if (found.length === 0 || performance.now() > deadline) return found;
  }
}

async function openNow(root: string): Promise<readonly string[]> {
  const found: string[] = [];
  for (const fd of await readdir('/proc/self/fd')) {
    try {
      const path = await readlink(`/proc/self/fd/${fd}`);
      if (isBelow(root, path)) found.push(path);
    } catch (error) {
      // The one that reads this very directory.
      if (!isErrno(error, 'ENOENT')) throw error;
    }
  }
  return found;
}

function operationsOf(object: object): Record<string, Operation> {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a module's functions, called by their names
  return object as Record<string, Operation>;
}

function isPossible(operation: string, { errno, when }: FileFault, args: readonly unknown[]): boolean {
  if (when === 'turned') return operation === 'write' && typeof args[3] === 'number';
  if (when === 'half') return withBytes.has(operation) && (errno !== null || operation !== 'writeFile');
  const flags = operation === 'open' ? args[1] : undefined;
  const onlyReads =
    readingOperations.has(operation) ||
    (operation === 'open' &&
      (flags === undefined || flags === 'r' || (typeof flags === 'number' && (flags & 3) === 0)));
  if (errno === 'ENOSPC' || errno === 'EROFS') return !onlyReads && operation !== 'close';
  return when === 'before' || !onlyReads;
}

/** The arguments for half of the bytes. */
function halved(operation: string, args: readonly unknown[]): unknown[] {
  const [data, offset, length, ...others] = args;
  if (!Buffer.isBuffer(data)) throw new Error(`${operation} without a buffer`);
  if (operation === 'writeFile') return [data.subarray(0, data.length >> 1), ...args.slice(1)];
  const count = typeof length === 'number' ? length : data.length;
  return [data, offset ?? 0, Math.max(1, count >> 1), ...others];
}

/** Nobody gets the handle of an `open` whose answer is an error. */
async function dropped(operation: string, result: unknown): Promise<void> {
  if (operation !== 'open' || typeof result !== 'object' || result === null) return;
  await operationsOf(result)['close']?.();
}

function systemError(code: string, syscall: string, path: string): Error {
  return Object.assign(new Error(`${code}: injected, ${syscall} '${path}'`), { code, syscall, path });
}
