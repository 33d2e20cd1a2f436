import { randomUUID } from 'node:crypto';
import { open, rename } from 'node:fs/promises';
import { join } from 'node:path';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { Hypervisor, HypervisorEvent } from '../../agent/hypervisor/hypervisor.ts';
import { createOverlay, readImageInfo } from '../../common/qemuImage.ts';

/** What the conformance suite of the `Hypervisor` port needs of the world around an implementation. */
export interface HypervisorFixture extends AsyncDisposable {
  readonly hypervisor: Hypervisor;
  /** Directory for memory states; the test process and the hypervisor see it under the same path. */
  readonly stateDir: string;
  /**
   * A new machine with a qcow2 image of a few MiB content for each target, standalone unless `backing` names
   * a qcow2 image to put it on. The suite powers it off before it ends; the fixture removes it.
   */
  createMachine(options: {
    readonly volumes: readonly { readonly target: string; readonly backing?: string | undefined }[];
    readonly running: boolean;
    /** It has a channel for a guest agent; when it runs, an agent answers. */
    readonly guestAgent?: boolean | undefined;
  }): Promise<ConformanceMachine>;
  /** Where bandwidth alone does not: block jobs that start meanwhile stay in progress until disposed. */
  readonly holdBlockJobs?: () => Disposable;
  /** What happens to a host. A promise whose hook is missing is not tested. */
  readonly externally?: {
    /** The hypervisor stops answering until disposed. Calls that ask something then have this deadline. */
    readonly stall?: { readonly deadlineMs: number; readonly begin: () => Promise<AsyncDisposable> };
    readonly restartHypervisor?: () => Promise<void>;
    /** SIGKILL for the QEMU of a machine; returns when it is gone. */
    readonly killQemu?: (name: string) => Promise<void>;
  };
}

export interface ConformanceMachine {
  readonly uuid: string;
  readonly name: string;
  /** Image of a volume; it does not change when something is put below it. */
  readonly imagePath: (target: string) => string;
}

const eventDeadlineMs = 20_000;

/** Everything that a hypervisor reported since the recording began. */
export class EventRecording implements AsyncDisposable {
  readonly events: HypervisorEvent[] = [];
  readonly #watchers = new Set<() => void>();
  #stop: () => Promise<void> = () => Promise.resolve();

  static async start(hypervisor: Hypervisor): Promise<EventRecording> {
    const recording = new EventRecording();
    recording.#stop = await hypervisor.subscribe((event) => {
      recording.events.push(event);
      for (const look of recording.#watchers) look();
    });
    return recording;
  }

  /** The first event that matches, waited for if it has not come yet. */
  async until(matches: (event: HypervisorEvent) => boolean): Promise<HypervisorEvent> {
    const { promise, resolve, reject } = Promise.withResolvers<HypervisorEvent>();
    const look = (): void => {
      const found = this.events.find(matches);
      if (found !== undefined) resolve(found);
    };
    const timer = setTimeout(() => {
      reject(new Error(`no such event; there were ${JSON.stringify(this.events)}`));
    }, eventDeadlineMs);
    this.#watchers.add(look);
    look();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#watchers.delete(look);
    }
  }

  /** Names of the lifecycle events of one machine, in the order in which they came. */
  lifecycle(uuid: string): string[] {
    return this.events.flatMap((event) =>
      event.kind === 'lifecycle' && event.uuid === uuid ? [event.event] : [],
    );
  }

  async stop(): Promise<void> {
    await this.#stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/** The definition that a save image must be given: trap 1. */
export async function correctedDefinition(hypervisor: Hypervisor, uuid: string): Promise<string> {
  const xml = DomainXml.parse(await hypervisor.definition(uuid, 'migratable'));
  xml.removeBackingStores();
  return xml.toString();
}

/** Moves the image of a machine that is off aside and puts an empty overlay in its place. */
export async function putOverlay(imagePath: string): Promise<{ readonly frozen: string }> {
  const { virtualSizeBytes } = await readImageInfo(imagePath, 'qcow2');
  const frozen = `${imagePath}.frozen`;
  await rename(imagePath, frozen);
  await createOverlay(imagePath, { path: frozen, format: 'qcow2' }, virtualSizeBytes);
  return { frozen };
}

/** Paths of a volume's chain, from the top down, as the live definition tells it. */
export async function liveChain(hypervisor: Hypervisor, uuid: string, target: string): Promise<string[]> {
  return DomainXml.parse(await hypervisor.definition(uuid, 'live')).liveChain(target);
}

/** A path for a memory state, where nothing is. */
export function freshState({ stateDir }: HypervisorFixture): string {
  return join(stateDir, `${randomUUID()}.state`);
}

/** The mark at the start of a save image. */
export async function magic(file: string): Promise<string> {
  await using handle = await open(file);
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(16), 0, 16, 0);
  return buffer.toString('latin1', 0, bytesRead);
}

/** Calls `done` until it is true. */
export async function until(done: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + eventDeadlineMs;
  while (!(await done())) {
    if (performance.now() > endMs) throw new Error(`did not happen within ${eventDeadlineMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
