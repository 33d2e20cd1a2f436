import type { Lab, LabAgent } from '../test/lab/lab.ts';
import { eventually } from '../test/lab/lab.ts';

/** What the phases of the bench `agent` are given. */
export interface AgentBench {
  readonly lab: Lab;
  /** The built product. */
  readonly command: string;
  /** So many figures of each kind. */
  readonly rounds: number;
  /** How long an idle service is looked at for one figure. */
  readonly idleSeconds: number;
  readonly machines: number;
}

/** A running service of the laboratory. */
export interface BenchedService extends AsyncDisposable {
  readonly pid: number;
}

/** Starts the service and waits until it can be asked; disposed of, it is asked to end, and waited for. */
export async function startService(agent: LabAgent): Promise<BenchedService> {
  const run = agent.background(['agent']);
  const ended = run.done.then(({ stderr }) => {
    throw new Error(`the service has ended: ${stderr}`);
  });
  const ready = eventually(() => run.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  await Promise.race([ready, ended]);
  // At its end nobody waits for that any more.
  ended.catch(() => undefined);
  return {
    pid: run.pid,
    [Symbol.asyncDispose]: async () => {
      run.kill('SIGTERM');
      await run.done;
    },
  };
}
