import type { EventEmitter } from 'node:events';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { endOrAbort } from '../../common/endOrAbort.ts';
import { errorRecord } from '../../common/errors.ts';
import type { Logger } from '../../common/log.ts';
import { version } from '../../common/version.ts';
import { pause, Wake } from '../../common/wake.ts';
import type { Agent } from '../agent.ts';
import { isSameOwner, thisOwner } from '../jobs/owner.ts';
import { alertTelling, type Telling } from '../report/alerts.ts';
import { backupTellings } from '../report/backupReports.ts';
import { type OutboxFigures, ServiceFigures } from '../observe/serviceFigures.ts';
import { channelOf, joinedChannelOf } from '../report/channel.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { hostIdIn } from '../report/hostId.ts';
import { ReportError } from '../report/errors.ts';
import { feedJobs } from '../report/jobReports.ts';
import { OutboxKeeper } from '../report/outboxKeeper.ts';
import { Sender } from '../report/sender.ts';
import { hostTellings, machineTellings, storageTellings } from '../report/siteReports.ts';
import { stateOfStorage } from '../storageStates.ts';
import { identityDirectory } from './controllerAccess.ts';

const jobsEveryMs = 2_000;
const siteEveryMs = 60_000;
const storagesEveryMs = 3_600_000;
/** However many jobs end, listings take a twentieth of the time at the most. */
const storagesRest = { leastMs: 5_000, timesTheLook: 20 } as const;
/** A listing of many backups is noted in pieces: each is a transaction, which holds up everything else. */
const tellingsAtOnce = 200;
/** A host that joins while its service runs reports from then on. */
const targetEveryMs = 30_000;

export interface ReportingOptions {
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Where it lets others tell what waits. */
  readonly figures?: ServiceFigures | undefined;
  /** Says that what is revoked was looked at. */
  readonly looks?: IdentityLooks | undefined;
  /** How soon it sees that the host has joined; half a minute unless told. */
  readonly targetEveryMs?: number | undefined;
}

/** Emits `looked` when the identity of the host and what is revoked may be others than before. */
export type IdentityLooks = EventEmitter<{ looked: [] }>;

/** Where reports go, and as whom this host sends them. */
interface Target {
  readonly address: string;
  /** null: it has joined no controller. */
  readonly joinedAs: string | null;
}

/**
 * Tells the controller that this host has joined, or that of the configuration, what happens here, until `signal`; another
 * one from when the host has joined it. Nothing of it holds up or fails anything else: what cannot be done is told in the
 * log and tried again.
 */
export async function reportToController(agent: Agent, options: ReportingOptions): Promise<void> {
  const { signal } = options;
  const targets = new TargetLook(agent, options.log);
  for (let target = await targets.look(); !signal.aborted; ) {
    const changed = new AbortController();
    const until = AbortSignal.any([signal, changed.signal]);
    const work =
      target === null
        ? Promise.resolve()
        : keepReporting(agent, target, targets.identities, { ...options, signal: until });
    const before = JSON.stringify(target);
    do {
      await pause(options.targetEveryMs ?? targetEveryMs, signal);
      if (!signal.aborted) target = await targets.look(target);
    } while (!signal.aborted && JSON.stringify(target) === before);
    changed.abort();
    await work;
  }
}

/** Reports until the signal. Never rejects: what nobody foresaw is told, and tried again. */
async function keepReporting(
  agent: Agent,
  target: Target,
  identities: IdentityStore,
  options: ReportingOptions,
): Promise<void> {
  const { log, signal } = options;
  while (!signal.aborted) {
    try {
      await reportTo(agent, target, identities, options);
    } catch (error) {
      log.error({ err: error }, 'nothing is reported to the controller; tried again');
    }
    await pause(options.targetEveryMs ?? targetEveryMs, signal);
  }
}

/** Looks where reports go now. */
class TargetLook {
  readonly identities: IdentityStore;
  readonly #agent: Agent;
  readonly #log: Logger;
  #isUnreadable = false;

  constructor(agent: Agent, log: Logger) {
    this.identities = new IdentityStore(identityDirectory(agent.parts.config.agent.stateDir));
    this.#agent = agent;
    this.#log = log;
  }

  /** @param before what it is while it cannot be read now; null: nowhere */
  async look(before: Target | null = null): Promise<Target | null> {
    try {
      const joined = await this.identities.current();
      this.#isUnreadable = false;
      const address = this.#agent.parts.config.controller.address ?? joined?.controller.address;
      return address === undefined ? null : { address, joinedAs: joined?.hostId ?? null };
    } catch (error) {
      if (!this.#isUnreadable)
        this.#log.error({ err: error }, 'who this host is to its controller cannot be read; tried again');
      this.#isUnreadable = true;
      return before;
    }
  }
}

async function reportTo(
  agent: Agent,
  { address, joinedAs }: Target,
  identities: IdentityStore,
  options: ReportingOptions,
): Promise<void> {
  const { controller, agent: settings } = agent.parts.config;
  const { log, signal } = options;
  const { figures = new ServiceFigures(), looks } = options;
  let sender: Sender | undefined;
  const path = join(settings.stateDir, 'outbox.sqlite');
  const onNoted = (): void => sender?.wake();
  const review = (): void => void sender?.review();
  using keeper = new OutboxKeeper(path, { maxBytes: controller.outboxMaxBytes }, { log, onNoted });
  try {
    figures.outbox = () => waitingIn(keeper);
    looks?.on('looked', review);
    const host = { joinedAs, address, stateDir: settings.stateDir };
    sender = await senderFor(host, identities, { keeper, log });
    const reporter = new Reporter(agent, keeper, options);
    await Promise.all([sender?.run(signal), reporter.run()]);
  } finally {
    looks?.off('looked', review);
    figures.outbox = null;
  }
}

/** @returns undefined: nothing can be sent there; what happens meanwhile is noted all the same */
async function senderFor(
  { joinedAs, address, stateDir }: Target & { readonly stateDir: string },
  identities: IdentityStore,
  { keeper, log }: { readonly keeper: OutboxKeeper; readonly log: Logger },
): Promise<Sender | undefined> {
  try {
    const channel = joinedAs === null ? channelOf(address) : joinedChannelOf(address, identities);
    const host = { id: joinedAs ?? (await hostIdIn(stateDir)), name: hostname(), version };
    return new Sender({ keeper, channel, host, log });
  } catch (error) {
    log.error({ err: error }, 'nothing is reported to the controller');
    return undefined;
  }
}

/** For the metrics; null where it cannot be read now, which whoever notes reports in it tells. */
function waitingIn({ outbox }: OutboxKeeper): OutboxFigures | null {
  try {
    const { reports, oldestMs } = outbox.backlog;
    return { waiting: reports, oldestAtMs: oldestMs };
  } catch (error) {
    if (error instanceof ReportError) return null;
    throw error;
  }
}

/** Looks what there is to report, and notes it. */
class Reporter {
  readonly #agent: Agent;
  readonly #keeper: OutboxKeeper;
  readonly #log: Logger;
  readonly #signal: AbortSignal;
  readonly #siteDue: Wake;
  readonly #storagesDue: Wake;
  #storagesTookMs = 0;
  /** Of the outbox when jobs were looked at the last time. */
  #generation: string | undefined;
  /** What could not be done the last time, by what it was. */
  readonly #failing = new Map<string, string>();

  constructor(
    agent: Agent,
    keeper: OutboxKeeper,
    { log, signal }: { readonly log: Logger; readonly signal: AbortSignal },
  ) {
    this.#agent = agent;
    this.#keeper = keeper;
    this.#log = log;
    this.#signal = signal;
    this.#siteDue = new Wake(signal);
    this.#storagesDue = new Wake(signal);
  }

  /** Each on its own: a storage that hangs does not keep the end of a job from being told. */
  async run(): Promise<void> {
    await Promise.all([
      this.#again(
        'jobs',
        () => this.#lookAtJobs(),
        () => pause(jobsEveryMs, this.#signal),
      ),
      this.#again(
        'the host',
        () => this.#lookAtSite(),
        () => this.#siteDue.sleep(siteEveryMs),
      ),
      this.#again(
        'storages',
        () => this.#lookAtStorages(),
        () => this.#restFromStorages(),
      ),
    ]);
  }

  async #again(what: string, look: () => Promise<void>, rest: () => Promise<void>): Promise<void> {
    while (!this.#signal.aborted) {
      // The service ends without waiting for a storage that does not answer.
      await endOrAbort(this.#attempt(what, look), this.#signal);
      if (!this.#signal.aborted) await rest();
    }
  }

  async #restFromStorages(): Promise<void> {
    const { leastMs, timesTheLook } = storagesRest;
    await pause(Math.max(leastMs, this.#storagesTookMs * timesTheLook), this.#signal);
    if (!this.#signal.aborted) await this.#storagesDue.sleep(storagesEveryMs);
  }

  /** Never rejects. */
  async #attempt(what: string, look: () => Promise<void>): Promise<void> {
    try {
      if (!this.#isService()) return;
      await look();
      if (this.#failing.delete(what)) this.#log.info({ what }, 'reports are noted again');
    } catch (error) {
      if (this.#signal.aborted) return;
      const { code } = errorRecord(error);
      if (this.#failing.get(what) !== code)
        this.#log.error({ what, err: error }, 'reports could not be noted; tried again');
      this.#failing.set(what, code);
    }
  }

  /** Of two services on one journal one reports, and it need not ask for the journal's lock each time. */
  #isService(): boolean {
    const { journal } = this.#agent.parts;
    const owner = journal.serviceOwner();
    const self = thisOwner();
    return (owner !== undefined && isSameOwner(owner, self)) || journal.claimService(self);
  }

  async #lookAtJobs(): Promise<void> {
    const { generation } = this.#keeper.outbox.state;
    // Everything is told anew, and not only as soon as it would be looked at.
    if (this.#generation !== undefined && this.#generation !== generation) {
      this.#siteDue.up();
      this.#storagesDue.up();
    }
    this.#generation = generation;
    for (let more = true; more && !this.#signal.aborted; ) {
      const fed = feedJobs(this.#agent.parts.journal, this.#keeper);
      // What they have made, checked or removed is seen there.
      if (fed.ended.length > 0) this.#storagesDue.up();
      more = fed.more;
      await nextTurn();
    }
  }

  async #lookAtSite(): Promise<void> {
    const { hypervisor, journal } = this.#agent.parts;
    try {
      const [info, machines] = await Promise.all([hypervisor.hostInfo(), hypervisor.machines()]);
      // What is started to verify a backup is no machine of this host.
      const own = machines.filter(({ uuid }) => journal.holder(uuid)?.kind !== 'verify');
      const { outbox } = this.#keeper;
      await this.#note([
        ...hostTellings(outbox.told('host'), info),
        ...machineTellings(outbox.told('machine'), own),
        ...this.#alert('libvirt/unreachable', null),
      ]);
    } catch (error) {
      const record = errorRecord(error);
      if (record.code !== 'HYPERVISOR_UNREACHABLE') throw error;
      await this.#note(this.#alert('libvirt/unreachable', record));
    }
  }

  async #lookAtStorages(): Promise<void> {
    const beganMs = performance.now();
    for (const storage of this.#agent.parts.storages.values()) {
      await this.#attempt(`storage ${storage.name}`, async () => {
        const state = await stateOfStorage(storage);
        const { name, warning } = state;
        const full = warning === null ? null : { code: 'STORAGE_FULL', message: warning, retryable: false };
        await this.#note([
          ...storageTellings(this.#keeper.outbox.told('storage'), state),
          ...this.#alert(`storage/${name}/unusable`, state.problem),
          ...this.#alert(`storage/${name}/filling`, full),
        ]);
        // Of a storage that cannot be read nothing is known: nothing in it is taken for deleted.
        if (!state.ok || !this.#keeper.outbox.hasRoom) return;
        const entries = await storage.list();
        await this.#note(backupTellings(this.#keeper.outbox.told('backup'), name, entries));
      });
    }
    this.#storagesTookMs = performance.now() - beganMs;
  }

  #alert(key: string, error: Parameters<typeof alertTelling>[2]): readonly Telling[] {
    const telling = alertTelling(this.#keeper.outbox.told('alert'), key, error);
    return telling === undefined ? [] : [telling];
  }

  async #note(tellings: readonly Telling[]): Promise<void> {
    for (let first = 0; first < tellings.length && !this.#signal.aborted; first += tellingsAtOnce) {
      const piece = tellings.slice(first, first + tellingsAtOnce);
      this.#keeper.note({ reports: piece.map(({ report }) => report), told: piece.map(({ told }) => told) });
      await nextTurn();
    }
  }
}

/** Lets everything else have its turn. */
function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
