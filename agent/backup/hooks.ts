import { type ErrorRecord, messageOf } from '../../common/errors.ts';
import { HookError } from '../hooks/errors.ts';
import { killGroup, type ProgramEnd, runProgram } from '../hooks/program.ts';
import { requireSafeProgram } from '../hooks/safeProgram.ts';
import { currentBootId, isOwnerAlive, processStartTicks } from '../jobs/owner.ts';
import type { JobDefinition, Step, StepContext } from '../jobs/step.ts';
import { type HookedFacts, type HookKind, hookKinds, type HookRun } from './hookFacts.ts';

/** Where a hook finds the programs that it calls by their names. */
const path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** How a job has ended, as its hooks are told; `parked`: it waits for somebody, and its end is yet to come. */
interface JobEnd {
  readonly state: 'finished' | 'failed' | 'cancelled' | 'parked';
  readonly error: ErrorRecord | undefined;
}

type Context = StepContext<HookedFacts>;

/** Hears how a hook has ended. */
export type OnHookEnd = (jobId: string, kind: HookKind, run: HookRun) => void;

/**
 * A job with the hooks of its policy: `preBackup` is its first step, before anything of the machine is looked at;
 * `postBackup` and `onFailure` come when all is in order again, also where recovery has put it in order. Each runs at
 * least once where it is due: one in whose middle the agent died is ended and runs again.
 */
export function withHooks<Facts extends HookedFacts>(
  definition: JobDefinition<Facts>,
  onEnd: OnHookEnd,
): JobDefinition<Facts> {
  const before: Step<Facts> = {
    name: 'preBackup',
    state: 'initialized',
    cancellable: true,
    // A pause before anything was begun comes before this: what it has put at rest must not wait.
    pausable: 'before',
    act: (context) => runPreBackup(context, onEnd),
  };
  const after = (last: Step<Facts> | undefined): Step<Facts> => ({
    name: 'postBackup',
    state: last?.reached ?? last?.state ?? 'initialized',
    cancellable: false,
    act: (context) => {
      const { state, error } = definition.outcome?.(context.facts) ?? { state: 'finished' };
      return runEndHooks(context, { state, error }, onEnd);
    },
  });
  return {
    ...definition,
    steps: (facts) => {
      const { preBackup, postBackup, onFailure } = facts.settings.hooks;
      const steps = definition.steps(facts);
      const hasEnd = postBackup !== undefined || onFailure !== undefined;
      return [
        ...(preBackup === undefined ? [] : [before]),
        ...(preBackup === undefined ? steps : withoutFirstPause(steps)),
        ...(hasEnd ? [after(steps.at(-1))] : []),
      ];
    },
    settle: async (context, cause) => {
      endLeftPrograms(context);
      const settlement = await definition.settle(context, cause);
      if (settlement.kind === 'continue') return settlement;
      const state = settlement.kind === 'park' ? 'parked' : settlement.state;
      await runEndHooks(context, { state, error: settlement.error }, onEnd);
      return settlement;
    },
  };
}

/** The first step is not the beginning any more. */
function withoutFirstPause<Facts>(steps: readonly Step<Facts>[]): readonly Step<Facts>[] {
  return steps.map((step, place) => (place === 0 ? { ...step, pausable: undefined } : step));
}

/** @throws HookError HOOK_FAILED, HOOK_UNSAFE, unless the policy goes on without it */
async function runPreBackup(context: Context, onEnd: OnHookEnd): Promise<void> {
  const hook = context.facts.settings.hooks.preBackup;
  if (hook === undefined) throw new Error('the job has no hook before it');
  const { problem } = await runHook(context, 'preBackup', { state: 'initialized', error: undefined }, onEnd);
  context.signal.throwIfAborted();
  if (problem === null) return;
  if (hook.whenItFails === 'abort')
    throw new HookError('HOOK_FAILED', `preBackup: ${problem}`, {
      retryable: true,
      hint: 'what it said: stillpoint job show <id>; see hooks: of the policy',
    });
  const warning = `the backup was made although preBackup failed: ${problem}`;
  context.learn({ warnings: [...context.facts.warnings, warning] });
}

/** Never rejects: what became of the machine and its backup is decided already. */
async function runEndHooks(context: Context, end: JobEnd, onEnd: OnHookEnd): Promise<void> {
  const { settings, hooks: runs } = context.facts;
  const { hooks } = settings;
  // Nothing has happened yet that they would have to answer.
  if (hooks.preBackup !== undefined && runs?.preBackup === undefined) return;
  const due: HookKind[] = [];
  if (end.state !== 'parked') due.push('postBackup');
  // A stop of the service is no failure: its schedule does the backup again.
  const isStopped = end.error?.code === 'AGENT_STOPPED';
  if ((end.state === 'failed' && !isStopped) || end.state === 'parked') due.push('onFailure');
  for (const kind of due) {
    const run = runs?.[kind];
    if (hooks[kind] === undefined || (run !== undefined && run.state !== 'begun')) continue;
    try {
      await runHook(context, kind, end, onEnd);
    } catch (error) {
      context.warn(`${kind} was left out: ${messageOf(error)}`);
    }
  }
}

/** Runs a hook and writes down what became of it. @throws what cannot be written down before it begins */
async function runHook(
  context: Context,
  kind: HookKind,
  end: { readonly state: string; readonly error: ErrorRecord | undefined },
  onEnd: OnHookEnd,
): Promise<HookRun> {
  const hook = context.facts.settings.hooks[kind];
  if (hook === undefined) throw new Error(`the job has no ${kind}`);
  const startedMs = performance.now();
  let run: HookRun = {
    state: 'begun',
    startedAt: new Date().toISOString(),
    durationMs: null,
    exitCode: null,
    problem: null,
    output: '',
    process: null,
  };
  const write = (changes: Partial<HookRun>): void => {
    run = { ...run, ...changes };
    context.commit({ hooks: { ...context.facts.hooks, [kind]: run } });
  };
  write({});
  await context.point(`begun:${kind}`);
  const { problem, exitCode, output } = await tryProgram(hook, {
    environment: environmentOf(context, kind, end),
    signal: context.signal,
    onStarted: (pid) =>
      write({ process: { pid, startTicks: processStartTicks(pid) ?? 0, bootId: currentBootId() } }),
  });
  const state = problem === null ? 'succeeded' : 'failed';
  const durationMs = performance.now() - startedMs;
  write({ state, durationMs, exitCode, problem, output, process: null });
  if (problem !== null) context.warn(`${kind}: ${problem}${output === '' ? '' : `; it said: ${output}`}`);
  onEnd(context.jobId, kind, run);
  return run;
}

type HookEnd = Pick<HookRun, 'problem' | 'exitCode' | 'output'>;

async function tryProgram(
  { command, deadlineMs }: { readonly command: readonly string[]; readonly deadlineMs: number },
  how: Pick<Parameters<typeof runProgram>[0], 'environment' | 'signal' | 'onStarted'>,
): Promise<HookEnd> {
  const [program = ''] = command;
  try {
    await requireSafeProgram(program);
    how.signal.throwIfAborted();
    const ended = await runProgram({ command, deadlineMs, ...how });
    return { problem: problemOf(program, ended, deadlineMs), exitCode: ended.exitCode, output: ended.output };
  } catch (error) {
    return { problem: messageOf(error), exitCode: null, output: '' };
  }
}

function problemOf(
  program: string,
  { exitCode, killedBy, isLate }: ProgramEnd,
  deadlineMs: number,
): string | null {
  if (isLate) return `${program} took longer than its ${Math.round(deadlineMs / 1000)} s, and was ended`;
  if (killedBy !== null) return `${program} was ended by ${killedBy}`;
  return exitCode === 0 ? null : `${program} ended with exit code ${exitCode}`;
}

function environmentOf(
  { jobId, facts }: Context,
  kind: HookKind,
  { state, error }: { readonly state: string; readonly error: ErrorRecord | undefined },
): Readonly<Record<string, string>> {
  return {
    PATH: path,
    LANG: 'C.UTF-8',
    STILLPOINT_HOOK: kind,
    STILLPOINT_JOB_ID: jobId,
    STILLPOINT_BACKUP_ID: facts.backupId,
    STILLPOINT_MACHINE: facts.machine.name,
    STILLPOINT_MACHINE_UUID: facts.machine.uuid,
    STILLPOINT_MODE: facts.settings.mode,
    STILLPOINT_STORAGES: facts.settings.storages.join(','),
    STILLPOINT_STATE: state,
    STILLPOINT_ERROR: error?.code ?? '',
    STILLPOINT_POINT_IN_TIME: facts.pointInTime ?? '',
  };
}

/** A dead agent's hooks run on without it: what they do must not meet what comes now. */
function endLeftPrograms({ facts }: Context): void {
  for (const kind of hookKinds) {
    const left = facts.hooks?.[kind]?.process ?? null;
    if (left !== null && isOwnerAlive(left)) killGroup(left.pid, 'SIGKILL');
  }
}
