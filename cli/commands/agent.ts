import { JobSignals } from '../../agent/api/jobSignals.ts';
import type { EngineListener } from '../../agent/jobs/engineListener.ts';
import { type OpenAgent, openAgent } from '../../agent/main.ts';
import { ServiceFigures } from '../../agent/observe/serviceFigures.ts';
import { runService } from '../../agent/service/service.ts';
import { endProcess } from '../../common/endProcess.ts';
import { createLogger } from '../../common/log.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { changing, readConfig } from '../session.ts';

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

/** The service: log lines on stderr for the journal of the system; a signal ends it when its jobs are at rest. */
async function serve(cli: Cli): Promise<0> {
  const loaded = await readConfig(cli);
  const log = createLogger({ level: loaded.config.agent.logLevel });
  const stop = new AbortController();
  const onSignal = (name: NodeJS.Signals): void => {
    log.info({ signal: name }, 'ending; jobs at hand are brought to rest first');
    stop.abort();
  };
  process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
  // Its default would end the process, also while it starts and while jobs are brought to rest.
  process.on('SIGHUP', () => undefined);
  const { configPath } = cli;
  const jobSignals = new JobSignals();
  const figures = new ServiceFigures();
  const listener = toAll(jobSignals.listener(), figures.jobBytes.listener);
  await using open = await openAgent({ loaded, configPath, log, listener });
  const { signal } = stop;
  const leave = (): never => endProcess(0);
  const { agent: opened } = open;
  const follow: OpenAgent['follow'] = (changed) => open.follow(changed);
  await runService({ agent: opened, loaded, configPath, log, jobSignals, follow, figures, signal, leave });
  return 0;
}

/** One listener that tells several. */
function toAll(...listeners: readonly EngineListener[]): EngineListener {
  return {
    progress: (progress) => listeners.forEach((listener) => listener.progress?.(progress)),
    state: (jobId, state) => listeners.forEach((listener) => listener.state?.(jobId, state)),
    warning: (jobId, message) => listeners.forEach((listener) => listener.warning?.(jobId, message)),
    error: (jobId, error) => listeners.forEach((listener) => listener.error?.(jobId, error)),
  };
}
