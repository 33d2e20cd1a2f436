import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import { isHalfRestored } from '../../common/restoreMark.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { SnapshotError } from './errors.ts';
import { requireAtRest } from './planTemplate.ts';
import type { ReadPlan } from './readPlan.ts';

/**
 * Notices when the images of a machine that is off are not at rest any more. They are not locked while they are
 * read, so that their owner can start the machine whenever he likes; what was read then is worth nothing.
 */
export class OfflineWatch implements AsyncDisposable {
  readonly #hypervisor: Hypervisor;
  readonly #plan: ReadPlan;
  readonly #marks: ReadonlyMap<string, string>;
  readonly #started = new AbortController();
  readonly #unsubscribe: () => Promise<void>;

  private constructor(
    hypervisor: Hypervisor,
    plan: ReadPlan,
    marks: ReadonlyMap<string, string>,
    subscribe: (listener: () => void) => () => Promise<void>,
  ) {
    this.#hypervisor = hypervisor;
    this.#plan = plan;
    this.#marks = marks;
    this.#unsubscribe = subscribe(() => this.#started.abort());
  }

  /** @throws SnapshotError MACHINE_INTERFERED when it runs already */
  static async start(hypervisor: Hypervisor, plan: ReadPlan): Promise<OfflineWatch> {
    const listeners: (() => void)[] = [];
    const unsubscribe = await hypervisor.subscribe((event) => {
      if (event.kind !== 'lifecycle' || event.uuid !== plan.machine.uuid) return;
      if (event.event === 'started') for (const listener of listeners) listener();
    });
    try {
      const marks = new Map<string, string>();
      // What is written to a device does not show in its node: there only the machine's own start is noticed, and
      // at the end a restore of ours.
      for (const { file, kind } of plan.volumes) if (kind === 'file') marks.set(file, await markOf(file));
      const watch = new OfflineWatch(hypervisor, plan, marks, (listener) => {
        listeners.push(listener);
        return unsubscribe;
      });
      // It may have been started before we listened.
      await watch.#requireOff();
      return watch;
    } catch (error) {
      await unsubscribe();
      throw error;
    }
  }

  /** @throws SnapshotError MACHINE_INTERFERED as soon as the machine is started, until `signal` is aborted */
  async untilInterfered(signal: AbortSignal): Promise<void> {
    const either = AbortSignal.any([signal, this.#started.signal]);
    if (!either.aborted) await once(either, 'abort');
    if (this.#started.signal.aborted && !signal.aborted) throw this.#interfered('was started');
  }

  /** @throws SnapshotError MACHINE_INTERFERED when the machine runs, or an image is not what it was at the start */
  async requireUntouched(): Promise<void> {
    await this.#requireOff();
    for (const [file, mark] of this.#marks) {
      if ((await markOf(file)) !== mark) throw this.#interfered(`has a changed image (${file})`);
    }
    for (const { file, kind } of this.#plan.volumes)
      if (kind === 'block' && (await isHalfRestored(file)))
        throw this.#interfered(`has a device that is half restored (${file})`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#unsubscribe();
  }

  async #requireOff(): Promise<void> {
    if (this.#plan.template === true) {
      for (const { file } of this.#plan.volumes)
        await requireAtRest(this.#hypervisor, this.#plan.machine, file);
      return;
    }
    const { status } = await this.#hypervisor.machine(this.#plan.machine.uuid);
    if (status.state !== 'shut-off' && status.state !== 'crashed') throw this.#interfered('was started');
  }

  #interfered(how: string): SnapshotError {
    return new SnapshotError(
      'MACHINE_INTERFERED',
      `${this.#plan.machine.name} ${how} while its images were read`,
      {
        hint: 'nothing of it was kept; start the backup again: mode "disk" reads a running machine',
        retryable: true,
      },
    );
  }
}

/** QEMU changes the header of every image that it opens for writing. */
export async function markOf(file: string): Promise<string> {
  const { dev, ino, size, mtimeNs } = await stat(file, { bigint: true });
  return [dev, ino, size, mtimeNs].join(':');
}
