import { aboutMachine, type Logger } from '../../common/log.ts';
import type { LoadedConfig } from '../../config/config.ts';
import type { Config } from '../../config/schema.ts';
import type { Agent } from '../agent.ts';
import type { JobSignals } from '../api/jobSignals.ts';
import { controllerServer, serveCallers } from './api.ts';
import { keepControllerAccess } from './controllerAccess.ts';
import { reportToController } from './reporting.ts';
import { resumeAtEnd } from './resumeAtEnd.ts';
import { clearLeftMarkers } from '../leftMarkers.ts';
import { followConfiguration } from './reload.ts';
import { type JobRow, machineOf } from '../jobs/job.ts';
import type { ServiceFigures } from '../observe/serviceFigures.ts';
import { observe } from './observe.ts';
import { pause } from './pause.ts';
import { actOnSchedules } from './schedules.ts';

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
  readonly follow: (config: Config) => Promise<readonly string[]>;
  /** Aborted when the service is to end; a job at hand is brought to its end first. */
  readonly signal: AbortSignal;
  /** What parts of the service let others tell of them. */
  readonly figures?: ServiceFigures | undefined;
}

/**
 * Runs the service of a host until its signal: answers callers, takes over jobs of dead processes, and acts on schedules.
 * @throws ApiError SERVICE_RUNNING, SOCKET_UNUSABLE; JobError JOURNAL_UNUSABLE
 */
export async function runService(context: ServiceContext): Promise<void> {
  const { agent, loaded, log, signal } = context;
  await using api = await serveCallers(context);
  log.info({ stateDir: loaded.config.agent.stateDir }, 'the agent is ready');
  resumeAtEnd(context);
  await agent.finishDeletions();
  await clearLeftMarkers(agent.parts);
  await Promise.all([
    actOnSchedules(agent, { log, signal }),
    recoverAgainAndAgain(context),
    followConfiguration(context),
    keepControllerAccess(controllerServer(api.context), loaded.config.agent, { log, signal }),
    reportToController(agent, { log, signal, figures: context.figures }),
    observe(context),
  ]);
  log.info('the agent has ended');
}

async function recoverAgainAndAgain({ agent, log, signal }: ServiceContext): Promise<void> {
  // A recovery can end with a merge of hours: others are not kept waiting for it.
  const working = new Set<Promise<void>>();
  const begin = (what: () => Promise<readonly JobRow[]>): void => {
    const work = recover(what, log).finally(() => working.delete(work));
    working.add(work);
  };
  for (let looks = 0; !signal.aborted; looks += 1) {
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
