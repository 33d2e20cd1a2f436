import { EventEmitter } from 'node:events';
import { aboutMachine, type Logger } from '../../common/log.ts';
import type { LoadedConfig } from '../../config/config.ts';
import type { Agent } from '../agent.ts';
import { IdentityStore } from '../identity/identityStore.ts';
import { PushedPolicies } from '../api/pushedPolicies.ts';
import type { JobSignals } from '../api/jobSignals.ts';
import { controllerServer, serveCallers } from './api.ts';
import { forgetEndedJobs } from './forgetting.ts';
import { identityDirectory, keepControllerAccess } from './controllerAccess.ts';
import { type IdentityLooks, reportToController } from './reporting.ts';
import { resumeAtEnd } from './resumeAtEnd.ts';
import { clearLeftMarkers } from '../leftMarkers.ts';
import { followConfiguration } from './reload.ts';
import { type JobRow, machineOf } from '../jobs/job.ts';
import type { ServiceFigures } from '../observe/serviceFigures.ts';
import { observe } from './observe.ts';
import { pause } from './pause.ts';
import { aborted, endInOrder } from './ending.ts';
import { Pulse } from './pulse.ts';
import { giveBackAtRest } from './restingMemory.ts';
import { actOnSchedules } from './schedules.ts';
import { ServiceManager } from './serviceManager.ts';

/** How often the service looks for jobs whose process died. */
const lookIntervalMs = 5_000;
/** Jobs that were parked because libvirt was away are tried again once a minute. */
const looksBetweenRetries = 12;

/** What every part of the service works with. */
export interface ServiceContext {
  readonly agent: Agent;
  readonly loaded: LoadedConfig;
  readonly configPath: string;
  readonly log: Logger;
  /** What the jobs of this process say while they run. */
  readonly jobSignals: JobSignals;
  /** Has all that begins from then on go by another configuration; see `OpenAgent`. */
  readonly follow: (loaded: Pick<LoadedConfig, 'config' | 'pushed'>) => Promise<readonly string[]>;
  /** Aborted when the service is to end; jobs at hand are brought to rest first. */
  readonly signal: AbortSignal;
  /** What a controller has pushed, and may push. */
  readonly pushed: PushedPolicies;
  /** What parts of the service let others tell of them. */
  readonly figures?: ServiceFigures | undefined;
  /** Ends the process at once, with jobs at work that the next one goes on with. */
  readonly leave: () => void;
}

/**
 * Runs the service of a host until its signal: answers callers, takes over jobs of dead processes, and acts on schedules.
 * @throws ApiError SERVICE_RUNNING, SOCKET_UNUSABLE; JobError JOURNAL_UNUSABLE
 */
export async function runService(given: Omit<ServiceContext, 'pushed'>): Promise<void> {
  const { agent, loaded, log, signal } = given;
  const identities = new IdentityStore(identityDirectory(loaded.config.agent.stateDir));
  const isJoined = async (): Promise<boolean> => (await identities.generation()) > 0;
  const pushed = new PushedPolicies({ agent, log, isJoined });
  const context = { ...given, pushed };
  await using api = await serveCallers(context);
  await pushed.open();
  const { stateDir, stopSeconds } = loaded.config.agent;
  const { journal, engine } = agent.parts;
  const pulse = new Pulse();
  const told = { journal, atWork: () => engine.atWork, pulse, log, stopMs: stopSeconds * 1000 };
  using manager = await ServiceManager.open(told);
  signal.addEventListener('abort', () => manager.stopping(), { once: true });
  using _ready = await agent.parts.hypervisor.stayReady();
  resumeAtEnd(context);
  await clearLeftMarkers(agent.parts);
  const looks: IdentityLooks = new EventEmitter();
  const onLook = (): void => void looks.emit('looked');
  const parts = Promise.all([
    // A storage that is away must not keep machines waiting, nor the end; what is left, the next one finishes.
    Promise.race([agent.finishDeletions(), aborted(signal)]),
    actOnSchedules(agent, { log, signal, pulse }),
    recoverAgainAndAgain(context, pulse),
    forgetEndedJobs(journal, { log, signal }),
    giveBackAtRest(engine, { log, signal, jobSignals: given.jobSignals }),
    followConfiguration(context),
    keepControllerAccess(controllerServer(api.context), loaded.config.agent, { log, signal, onLook }),
    reportToController(agent, { log, signal, figures: context.figures, looks }),
    observe(context),
    // What callers have begun is at work like everything else.
    aborted(signal).then(() => api.context.background.settled()),
  ]);
  log.info({ stateDir }, 'the agent is ready');
  manager.ready();
  await endInOrder(context, parts);
  log.info('the agent has ended');
}

async function recoverAgainAndAgain({ agent, log, signal }: ServiceContext, pulse: Pulse): Promise<void> {
  // A recovery can end with a merge of hours: others are not kept waiting for it.
  const working = new Set<Promise<void>>();
  const begin = (what: () => Promise<readonly JobRow[]>): void => {
    const work = recover(what, log).finally(() => working.delete(work));
    working.add(work);
  };
  for (let looks = 0; !signal.aborted; looks += 1) {
    pulse.looked('recovery');
    begin(() => agent.recoverOrphans());
    if (looks % looksBetweenRetries === looksBetweenRetries - 1) begin(() => agent.retryParked());
    await pause(signal, lookIntervalMs);
  }
  await Promise.all(working);
}

async function recover(what: () => Promise<readonly JobRow[]>, log: Logger): Promise<void> {
  try {
    for (const row of await what())
      log.info(
        { jobId: row.id, ...aboutMachine(machineOf(row)), state: row.state },
        'job taken over and ended',
      );
  } catch (error) {
    // A service outlives what it cannot do now; it tries again with the next look.
    log.error({ err: error }, 'jobs could not be taken over');
  }
}
