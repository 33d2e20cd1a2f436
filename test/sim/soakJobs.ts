import { randomUUID } from 'node:crypto';
import { readdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import type { ClientReadableStream } from '@grpc/grpc-js';

import type { JobRow } from '../../agent/jobs/job.ts';
import {
  type AgentClient,
  BackupMode,
  type Job,
  type ListJobsResponse,
  type PlanRestoreResponse,
  RestoreStart,
  type StartRestoreResponse,
  type WatchJobResponse,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import { refusal } from './errors.ts';
import type { Operation } from './faults.ts';
import { answerOf, firstJob, gathered, startBackup } from './servedSite.ts';
import { busyMachines, machineThatIsOff, type SoakHost } from './soakHost.ts';

/** So many are done to each machine in one round, one after the other. */
const perMachine = 4;

/** What a job with memory fails with, and one without. */
const failures = { disk: 'beginBackup', save: 'save', live: 'snapshotLive' } as const satisfies Record<
  string,
  Operation
>;

const modes = {
  disk: BackupMode.BACKUP_MODE_DISK,
  save: BackupMode.BACKUP_MODE_SAVE,
  live: BackupMode.BACKUP_MODE_LIVE,
  offline: BackupMode.BACKUP_MODE_OFFLINE,
};

type RunningMode = keyof typeof failures;

/** What people, programs and guests do to a host, as a seed decides. */
export class SoakJobs {
  readonly #host: SoakHost;
  readonly #random: () => number;
  readonly #written = new Map<string, number>();

  /** @param random numbers from 0 to 1 */
  constructor(host: SoakHost, random: () => number) {
    this.#host = host;
    this.#random = random;
  }

  #chance(share: number): boolean {
    return this.#random() < share;
  }

  #pick<T>(from: readonly T[]): T {
    const one = from[Math.floor(this.#random() * from.length)];
    if (one === undefined) throw new Error('nothing to choose from');
    return one;
  }

  /**
   * Some jobs of every machine, all machines at a time, while metrics are asked for and the configuration is edited.
   * @param options.watched somebody watches what happens on the host: the service gathers it, and keeps 4096 events
   */
  async round({ watched }: { readonly watched: boolean }): Promise<void> {
    using client = closing(this.#host.client());
    const events = watched ? client.watchEvents({ cursor: '' }) : undefined;
    const left = events === undefined ? undefined : ended(events);
    const lanes = [
      ...busyMachines.map((machine) => this.#lane(machine)),
      this.#laneOff(),
      this.#host.scrape(),
      this.#host.editConfiguration(),
    ];
    try {
      await Promise.all(lanes);
    } finally {
      events?.cancel();
      await left;
      await Promise.allSettled(lanes);
    }
    await this.#prune();
    await this.#host.scrape();
  }

  async #lane(machine: string): Promise<void> {
    for (let count = 0; count < perMachine; count += 1) {
      const share = this.#random();
      if (share < 0.55)
        await this.#backUp(machine, this.#chance(0.8) ? 'disk' : this.#pick(['save', 'live']));
      else if (share < 0.7) await this.#cancel(machine, this.#mostlyDisk());
      else if (share < 0.85) await this.#fail(machine, this.#mostlyDisk());
      else if (share < 0.92) await this.#restore(machine);
      else await this.#verify(machine);
    }
  }

  async #laneOff(): Promise<void> {
    for (let count = 0; count < perMachine; count += 1) await this.#backUp(machineThatIsOff, 'offline');
  }

  #mostlyDisk(): RunningMode {
    return this.#chance(0.7) ? 'disk' : this.#pick(['save', 'live']);
  }

  async #backUp(machine: string, mode: keyof typeof modes): Promise<void> {
    if (mode !== 'offline' && this.#chance(0.5)) await this.#write(machine);
    using client = closing(this.#host.client());
    const job = await this.#start(client, machine, mode);
    if (this.#chance(0.4)) await this.#lookFor(client, job.id);
    await gathered(client.watchJob({ id: job.id, cursor: '', withCopies: this.#chance(0.5) }));
  }

  /** Somebody watches for a moment, and goes without a word. */
  async #lookFor(client: AgentClient, id: string): Promise<void> {
    const stream = client.watchJob({ id, cursor: '', withCopies: true });
    const over = ended(stream);
    const first = Promise.withResolvers<void>();
    stream.once('data', () => first.resolve());
    await Promise.race([first.promise, over]);
    stream.cancel();
    await over;
    await answerOf<ListJobsResponse>((done) =>
      client.listJobs({ machine: '', unfinishedOnly: false, pageSize: 10, pageToken: '' }, done),
    );
  }

  async #start(client: AgentClient, machine: string, mode: keyof typeof modes): Promise<Job> {
    return firstJob(
      await startBackup(client, {
        idempotencyKey: randomUUID(),
        machines: [machine],
        mode: modes[mode],
        reread: this.#chance(0.3),
      }),
    );
  }

  /** Cancelled at once, or when a step is told. */
  async #cancel(machine: string, mode: RunningMode): Promise<void> {
    using client = closing(this.#host.client());
    const { id } = await this.#start(client, machine, mode);
    const messages: AsyncIterable<WatchJobResponse> = client.watchJob({ id, cursor: '', withCopies: false });
    let steps = Math.floor(this.#random() * 4);
    for await (const { update } of messages) {
      if (update?.$case !== 'step' || (steps -= 1) !== 0) continue;
      // It may have ended meanwhile.
      await answerOf((done) => client.cancelJob({ id }, done)).catch(() => undefined);
    }
  }

  async #fail(machine: string, mode: RunningMode): Promise<void> {
    this.#host.site.world.failNext(failures[mode], refusal('operationFailed', 'the soak has it fail'));
    await this.#backUp(machine, mode);
  }

  /** In place, whatever is in the way. */
  async #restore(machine: string): Promise<void> {
    const backup = await this.#newest(machine);
    if (backup === undefined) return;
    using client = closing(this.#host.client());
    const target = { $case: 'inPlace', value: {} } as const;
    const start = RestoreStart.RESTORE_START_UNSPECIFIED;
    const instant = this.#chance(0.3);
    const restore = { backup, storage: 'near', target, start, volumes: [], instant, networks: {} };
    const { plan } = await answerOf<PlanRestoreResponse>((done) => client.planRestore({ restore }, done));
    const acceptedConflicts = [...new Set(plan?.conflicts.map(({ kind }) => kind))];
    const request = { idempotencyKey: randomUUID(), restore, acceptedConflicts };
    const { job } = await answerOf<StartRestoreResponse>((done) => client.startRestore(request, done));
    await gathered(client.watchJob({ id: job?.id ?? '', cursor: '', withCopies: false }));
    const { status } = this.#host.site.world.machine(machine);
    if (status.state === 'shut-off') await this.#host.site.world.startMachine(machine);
    if (status.state === 'paused') await this.#host.agent.parts.hypervisor.resume(this.#uuid(machine));
    await this.#removeCopies(machine);
  }

  /** What a restore has replaced is its owner's to remove. */
  async #removeCopies(machine: string): Promise<void> {
    const image = this.#host.site.image('vda', machine);
    const ofMachine = new RegExp(`^${machine}[-.].*\\.replaced-`);
    for (const name of await readdir(dirname(image)))
      if (ofMachine.test(name)) await rm(join(dirname(image), name));
  }

  /** Every byte, and sometimes by starting it. */
  async #verify(machine: string): Promise<JobRow | undefined> {
    const id = await this.#newest(machine);
    if (id === undefined) return undefined;
    const { agent } = this.#host;
    const entry = await agent.findBackup(id, 'near');
    await agent.storage('near').verify(entry, { data: true });
    if (this.#chance(0.5)) return undefined;
    return agent.run(agent.createBoot(await agent.planBoot(entry, { expect: 'never', deadlineMs: 1 })));
  }

  async #newest(machine: string): Promise<string | undefined> {
    const { agent } = this.#host;
    const entries = await agent.backups.list(this.#uuid(machine), () => undefined);
    return (
      entries.findLast(({ storage, state }) => storage === 'near' && state === 'Active')?.id ?? undefined
    );
  }

  #uuid(machine: string): string {
    return this.#host.site.world.machine(machine).uuid;
  }

  /** The guest writes its next number, if it runs. */
  async #write(machine: string): Promise<void> {
    const { world } = this.#host.site;
    if (world.machine(machine).status.state !== 'running') return;
    const next = (this.#written.get(machine) ?? 1) + 1;
    this.#written.set(machine, next);
    await world.write(machine, 'vda', next);
  }

  /** By the rules of the policies, in all storages. */
  async #prune(): Promise<void> {
    const { pruner } = this.#host.agent;
    const failed = (_: string, error: unknown): void => {
      throw error;
    };
    const listener = {
      removed: () => undefined,
      keptAfterAll: () => undefined,
      failed: (_: unknown, __: unknown, error: unknown) => {
        throw error;
      },
    };
    const plan = await pruner.plan({ machines: [] }, failed);
    await pruner.run(plan, { signal: this.#host.signal, listener });
  }
}

/** A client that is closed with its scope. */
function closing(client: AgentClient): AgentClient & Disposable {
  return Object.assign(client, { [Symbol.dispose]: () => client.close() });
}

/** The end of a stream that somebody leaves, however it comes. */
function ended(stream: ClientReadableStream<unknown>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  stream.on('error', () => resolve()).once('end', () => resolve());
  stream.on('data', () => undefined);
  return promise;
}
