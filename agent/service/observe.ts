import { parseListenAddress } from '../../common/hostPort.ts';
import { writeFileDurable } from '../../common/files.ts';
import type { Logger } from '../../common/log.ts';
import { thisOwner } from '../jobs/owner.ts';
import { Alerts } from '../observe/alerts.ts';
import { HostWatch } from '../observe/hostWatch.ts';
import { MetricsServer } from '../observe/metricsServer.ts';
import { Observer } from '../observe/observer.ts';
import { ServiceFigures } from '../observe/serviceFigures.ts';
import { pause } from './pause.ts';
import type { ServiceContext } from './service.ts';

/** What it needs of the service. */
type ObserveContext = Pick<ServiceContext, 'agent' | 'loaded' | 'configPath' | 'log' | 'signal' | 'figures'>;

/** Alerts and the textfile are as old as this at the most. */
const everyMs = 60_000;
const watching = {
  machinesEveryMs: 60_000,
  /** A look at a storage may mean to list a bucket. */
  storagesEveryMs: 15 * 60_000,
  /** Prometheus waits for 10 s. What takes longer is told as it was before, or as the journal knows it. */
  patienceMs: 5000,
};
/** The collector runs as another user. */
const textfileMode = 0o644;

/**
 * Lets others watch this host, as the configuration says: by metrics, and by alerts. Returns when the signal has come;
 * what fails is told in the log and tried again, and keeps nobody from backing up.
 */
export async function observe(context: ObserveContext): Promise<void> {
  const { agent, log, signal, figures = new ServiceFigures() } = context;
  const { config } = agent.parts;
  const { listen, textfile } = config.metrics;
  if (!(await becomeService(context))) return;
  const observer = new Observer(agent, new HostWatch({ agent, ...watching }), figures);
  const parts: Promise<void>[] = [];
  if (listen !== null) parts.push(serveMetrics(observer, listen, { log, signal }));
  if (textfile !== null) parts.push(writeMetrics(observer, textfile, { log, signal }));
  if (config.alerts.webhooks.length > 0) parts.push(sendAlerts(observer, figures, context));
  await Promise.all(parts);
}

/** Two services would tell everything twice. @returns false when the signal has come first */
async function becomeService({ agent, log, signal }: ObserveContext): Promise<boolean> {
  let isService = false;
  let isTold = false;
  await againAndAgain({ log, signal }, 'this process could not be written down as the service', async () => {
    isService = agent.parts.journal.claimService(thisOwner());
    if (!isService && !isTold)
      log.warn('another process is the service of this host: this one waits for its end');
    isTold = true;
    return isService;
  });
  return isService;
}

interface Told {
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** Does something once a minute until it says that it is done, or the signal comes; what it throws is told as `what`. */
async function againAndAgain(
  { log, signal }: Told,
  what: string,
  act: () => Promise<boolean>,
): Promise<void> {
  while (!signal.aborted) {
    try {
      if (await act()) return;
    } catch (error) {
      log.error({ err: error }, `${what}; tried again in a minute`);
    }
    await pause(signal, everyMs);
  }
}

async function serveMetrics(observer: Observer, listen: string, told: Told): Promise<void> {
  const { metricsContentType: contentType, metricsText } = await import('../observe/metrics.ts');
  const { log, signal } = told;
  const options = {
    address: parseListenAddress(listen),
    contentType,
    text: async () => metricsText(await observer.observe()),
    onError: (error: unknown) => log.error({ err: error }, 'metrics could not be told'),
  };
  await againAndAgain(told, 'metrics cannot be told', async () => {
    await using server = await MetricsServer.start(options);
    log.info(server.address, 'metrics are told here');
    await ended(signal);
    return true;
  });
}

function ended(signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  if (signal.aborted) resolve();
  signal.addEventListener('abort', () => resolve(), { once: true });
  return promise;
}

async function writeMetrics(observer: Observer, path: string, told: Told): Promise<void> {
  const { metricsText } = await import('../observe/metrics.ts');
  await againAndAgain(told, `metrics could not be written to ${path}`, async () => {
    await writeFileDurable(path, await metricsText(await observer.observe()), { mode: textfileMode });
    return false;
  });
}

async function sendAlerts(
  observer: Observer,
  figures: ServiceFigures,
  context: ObserveContext,
): Promise<void> {
  const { agent, log, signal } = context;
  const { config } = agent.parts;
  let alerts: Alerts | undefined;
  await againAndAgain({ log, signal }, 'what is wrong on this host could not be told', async () => {
    const opened = (alerts ??= await Alerts.open({ config, log, signal }));
    figures.waitingAlerts = () => opened.waiting;
    const { status, problems } = await observer.observe();
    await opened.consider(status, problems);
    return false;
  });
  await alerts?.settled();
}
