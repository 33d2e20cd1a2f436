import { setTimeout as sleep } from 'node:timers/promises';
import type { Agent } from '../../agent/agent.ts';
import { HostWatch } from '../../agent/observe/hostWatch.ts';
import type { Cli, RunVerb } from '../cli.ts';
import type { ExitCode } from '../exitCodes.ts';
import { type HostLook, lookBy, lookOnce } from '../hostLook.ts';
import { reading } from '../session.ts';
import { problemLines, statusFacts, statusJson, statusLines } from '../statusView.ts';

/** The owner of a job writes its progress twice as often. */
const lookIntervalMs = 1000;
const again = { storagesEveryMs: 60_000, machinesEveryMs: 5000, patienceMs: lookIntervalMs };

/** `stillpoint status [--watch]`. */
export const status: RunVerb = (cli, _, options) =>
  reading(cli, async ({ agent }) => {
    if (options.flag('watch')) return follow(cli, agent, new HostWatch({ agent, ...again }));
    const seen = await lookOnce(agent);
    if (cli.terminal.json) cli.terminal.object(statusJson(seen.status, seen.problems));
    else print(cli, seen);
    return exitCodeOf(seen);
  });

/** What was left with work is told of by the session, with what to type. */
function print({ terminal }: Cli, { status: seen, problems }: HostLook): void {
  for (const line of statusLines(seen)) terminal.out(...line);
  const others = problems.filter(({ event }) => event !== 'job-parked');
  for (const line of problemLines(others)) terminal.err(...line);
}

/** Unfinished work needs somebody at once; a storage that is nearly full does not. */
function exitCodeOf({ status: { jobs }, problems }: HostLook): ExitCode {
  if (jobs.some(({ hold }) => hold === 'parked' || hold === 'orphaned')) return 9;
  return problems.some(({ severity }) => severity === 'critical') ? 3 : 0;
}

/** Shows a host until a signal comes: drawn in place on a terminal, elsewhere a line for each change. */
async function follow(cli: Cli, agent: Agent, watch: HostWatch): Promise<ExitCode> {
  const stop = new AbortController();
  const end = (): void => stop.abort();
  process.on('SIGINT', end).on('SIGTERM', end);
  let told: ReadonlyMap<string, string> = new Map();
  let seen: HostLook;
  try {
    do {
      seen = await lookBy(agent, watch);
      told = tell(cli, seen, told);
      await pause(stop.signal);
    } while (!stop.signal.aborted);
  } finally {
    cli.terminal.live([]);
    process.off('SIGINT', end).off('SIGTERM', end);
  }
  // What was drawn is gone: what stays is how it was at the end.
  if (cli.terminal.draws) print(cli, seen);
  return exitCodeOf(seen);
}

async function pause(signal: AbortSignal): Promise<void> {
  try {
    await sleep(lookIntervalMs, undefined, { signal });
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** @returns what has been told */
function tell(
  { terminal }: Cli,
  { status: seen, problems }: HostLook,
  told: ReadonlyMap<string, string>,
): ReadonlyMap<string, string> {
  const facts = statusFacts(seen, problems);
  if (terminal.json) {
    const now = JSON.stringify([[...facts], seen.jobs]);
    if (told.get('json') !== now) terminal.object(statusJson(seen, problems));
    return new Map([['json', now]]);
  }
  if (terminal.draws) {
    terminal.live([...statusLines(seen), [], ...problemLines(problems)]);
    return facts;
  }
  const at = new Date(seen.atMs).toISOString();
  for (const [key, text] of facts) if (told.get(key) !== text) terminal.out(`${at} ${text}`);
  for (const [key, text] of told) if (!facts.has(key)) terminal.out(`${at} over: ${text}`);
  return facts;
}
