import { setTimeout as sleep } from 'node:timers/promises';
import type { JobRow } from '../../agent/jobs/job.ts';
import { openAgent } from '../../agent/main.ts';
import { actOnSchedules } from '../../agent/service/schedules.ts';
import { createLogger, type Logger } from '../../common/log.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { changing, readConfig } from '../session.ts';

/** How often the service looks for jobs whose process died. */
const lookIntervalMs = 5_000;
/** Jobs that were parked because libvirt was away are tried again once a minute. */
const looksBetweenRetries = 12;

/** `stillpoint agent [--once]`. */
export const agent: RunVerb = (cli, _, options) => {
  if (!options.flag('once')) return serve(cli);
  // Taking over is what every command that changes something begins with; afterwards only a look is left.
  return changing(cli, async (session) => {
    const { engine, journal } = session.agent.parts;
    const left = [...journal.holding().filter(({ owner }) => owner === null), ...engine.orphaned()];
    for (const job of left)
      cli.terminal.warning(
        `job ${job.id} of ${job.machineName} was left with work to do; type: stillpoint job show ${job.id}`,
      );
    if (left.length === 0) cli.terminal.remark('no unfinished work is left');
    return left.length > 0 ? 9 : 0;
  });
};

/** The service: log lines on stderr for the journal of the system; a signal ends it after the job at hand. */
async function serve(cli: Cli): Promise<0> {
  const loaded = await readConfig(cli);
  const log = createLogger({ level: loaded.config.agent.logLevel });
  const stop = new AbortController();
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info({ signal }, 'ending; a job at hand is brought to its end first');
    stop.abort();
  };
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
  await using open = await openAgent({ loaded, configPath: cli.configPath, log });
  log.info({ stateDir: loaded.config.agent.stateDir }, 'the agent is ready');
  await open.agent.finishDeletions();
  // A recovery can end with a merge of hours: others are not kept waiting for it.
  const working = new Set<Promise<void>>();
  const begin = (what: () => Promise<readonly JobRow[]>): void => {
    const work = recover(what, log).finally(() => working.delete(work));
    working.add(work);
  };
  const schedules = actOnSchedules(open.agent, { log, signal: stop.signal });
  for (let looks = 0; !stop.signal.aborted; looks += 1) {
    begin(() => open.agent.recoverOrphans());
    if (looks % looksBetweenRetries === looksBetweenRetries - 1) begin(() => open.agent.retryParked());
    await pause(stop.signal);
  }
  await Promise.all([schedules, ...working]);
  log.info('the agent has ended');
  return 0;
}

async function recover(what: () => Promise<readonly JobRow[]>, log: Logger): Promise<void> {
  try {
    for (const row of await what())
      log.info({ jobId: row.id, machine: row.machineName, state: row.state }, 'job taken over and ended');
  } catch (error) {
    // A service outlives what it cannot do now; it tries again with the next look.
    log.error({ err: error }, 'jobs could not be taken over');
  }
}

async function pause(signal: AbortSignal): Promise<void> {
  try {
    await sleep(lookIntervalMs, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
