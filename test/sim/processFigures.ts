import { getEventListeners } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { getHeapSpaceStatistics, queryObjects } from 'node:v8';

import { collectGarbage } from '../collectGarbage.ts';

/** Spaces of V8's heap that hold code, and what only code refers to. */
const codeSpaces = /^(?:code|trusted)_/;

/** Workers of an io_uring, as the kernel names them. */
const kernelThread = /^iou-(?:wrk|sqp)-/;

/** What this process holds of the system, at rest. */
export interface ProcessFigures {
  readonly descriptors: number;
  readonly children: number;
  /** Those that the process made itself, not the kernel's own (see {@link threadNames}). */
  readonly threads: number;
  /** What keeps the event loop alive: timers, sockets, pipes, … */
  readonly resources: number;
  /** Of the process itself, and of the signals that were given. */
  readonly listeners: number;
}

/** What this process has in memory after garbage was collected, in bytes. */
export interface MemoryFigures {
  /** Objects. Code is not among them: V8 goes on compiling for hundreds of jobs, and discards what is not used. */
  readonly heapBytes: number;
  /** How many objects there are: sharper than bytes, of which V8 takes more and more for its own. */
  readonly objects: number;
  /** Buffers, and what C++ holds for objects. */
  readonly externalBytes: number;
  readonly residentBytes: number;
}

/** @param signals that live as long as what is looked at */
export function processFigures(signals: readonly AbortSignal[]): ProcessFigures {
  return {
    descriptors: descriptors().length,
    children: children().length,
    threads: sum(Object.values(threadNames())),
    resources: process.getActiveResourcesInfo().length,
    listeners:
      sum(process.eventNames().map((name) => process.listenerCount(name))) +
      sum(signals.map((signal) => getEventListeners(signal, 'abort').length)),
  };
}

/** What the open descriptors of this process are. */
export function descriptors(): readonly string[] {
  return readdirSync('/proc/self/fd').flatMap((descriptor) => {
    try {
      return [readlinkSync(`/proc/self/fd/${descriptor}`)];
    } catch {
      // The directory itself, which was open while it was read.
      return [];
    }
  });
}

/**
 * How many threads of each name there are. Those are left out that the kernel gives an io_uring on its own: libuv hands
 * changes of its epoll descriptor over by one, and where a change would have to wait the kernel lets a thread wait, the
 * last of which stays until the ring is closed.
 */
export function threadNames(): Readonly<Record<string, number>> {
  const names: Record<string, number> = {};
  for (const thread of readdirSync('/proc/self/task')) {
    const name = readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim();
    if (!kernelThread.test(name)) names[name] = (names[name] ?? 0) + 1;
  }
  return names;
}

function children(): readonly string[] {
  return readdirSync('/proc/self/task').flatMap((thread) =>
    readFileSync(`/proc/self/task/${thread}/children`, 'utf8')
      .split(' ')
      .filter((pid) => pid !== ''),
  );
}

export async function memoryFigures(): Promise<MemoryFigures> {
  await collectGarbage();
  const { external, rss } = process.memoryUsage();
  const objects = getHeapSpaceStatistics().filter(({ space_name: name }) => !codeSpaces.test(name));
  const heapBytes = sum(objects.map(({ space_used_size: bytes }) => bytes));
  return {
    heapBytes,
    objects: queryObjects(Object, { format: 'count' }),
    externalBytes: external,
    residentBytes: rss,
  };
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((all, one) => all + one, 0);
}
