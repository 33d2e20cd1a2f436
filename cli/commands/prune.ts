import type { Agent } from '../../agent/agent.ts';
import type { PruneRequest, Pruning } from '../../agent/pruning.ts';
import { formatBytes } from '../../common/units.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { shortId, storedBytes, tellUnreachable } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { styled, tableLines, type Text } from '../output.ts';
import { type PruneOutcome, PruneOutcomes } from '../pruneOutcomes.ts';
import { changing, reading } from '../session.ts';
import { pruneHosts } from './hostPrune.ts';

/** `stillpoint prune [MACHINE…]`: shows what goes and why the others stay, and asks first. */
export const prune: RunVerb = (cli, machines, options) => {
  if (options.flag('host')) return pruneHosts(cli, machines, options);
  const unreachable = tellUnreachable(cli);
  const planWith = (agent: Agent): Promise<readonly Pruning[]> => {
    const named = options.texts('storage')?.flatMap((name) => agent.storagesOf(name));
    const request: PruneRequest = { machines, storages: named?.map(({ name }) => name) };
    return agent.pruner.plan(request, unreachable.tell);
  };
  if (options.flag('dryRun')) {
    return reading(cli, async ({ agent }) => {
      const plan = await planWith(agent);
      if (cli.terminal.json) printObjects(cli, plan, new Map());
      else printPlan(cli, plan, cli.terminal.out.bind(cli.terminal));
      remarkOn(cli, plan);
      return unreachable.code;
    });
  }
  return changing(cli, async ({ agent, interruption }) => {
    const plan = await planWith(agent);
    const asks = !options.flag('yes') && doomed(plan).length > 0;
    const { terminal } = cli;
    if (!terminal.json || asks)
      printPlan(cli, plan, terminal.json ? terminal.err.bind(terminal) : terminal.out.bind(terminal));
    remarkOn(cli, plan);
    if (asks) await confirm(cli, options, interruption.signal);
    const outcomes = new PruneOutcomes(cli);
    await agent.pruner.run(plan, { signal: interruption.signal, listener: outcomes });
    if (terminal.json) printObjects(cli, plan, outcomes.byEntry);
    if (interruption.signal.aborted) {
      terminal.remark('interrupted: the rest stays; repeat the command to go on');
      return 130;
    }
    return outcomes.exitCode(unreachable.code);
  });
};

function doomed(plan: readonly Pruning[]): readonly BackupEntry[] {
  return plan.flatMap(({ decisions }) => decisions.filter(({ keep }) => !keep).map(({ entry }) => entry));
}

function printPlan(cli: Cli, plan: readonly Pruning[], tell: (...parts: readonly Text[]) => void): void {
  const columns = ['POINT IN TIME', 'ID', 'PRUNE', 'WHY'].map((title) => ({ title }));
  for (const pruning of plan) {
    tell(styled('bold', pruning.machine.name), ` in ${pruning.storage}: ${rulesText(pruning)}`);
    const rows = pruning.decisions.map(({ entry, keep, reasons }): readonly Text[] => [
      entry.pointInTime,
      entry.id === null ? '-' : shortId(entry.id),
      keep ? styled('green', 'keep') : styled('yellow', 'remove'),
      keep ? reasons.join(', ') : 'no rule keeps it',
    ]);
    for (const line of tableLines(columns, rows)) tell('  ', ...line);
  }
  const going = doomed(plan);
  if (going.length === 0) return;
  const total = plan.reduce((sum, { decisions }) => sum + decisions.length, 0);
  const bytes = going.reduce((sum, entry) => sum + (storedBytes(entry) ?? 0), 0);
  tell(`to be removed for good: ${going.length} of ${total}, ${formatBytes(bytes)}`);
}

function rulesText({ policy, keep, timeZone, skipped }: Pruning): string {
  if (skipped !== null) return skipped;
  const rules = Object.entries(keep ?? {}).filter(([, rule]) => rule !== undefined);
  if (rules.length === 0) return `policy ${policy} keeps everything`;
  return `policy ${policy} keeps ${rules.map((rule) => rule.join(' ')).join(', ')} (${timeZone})`;
}

function remarkOn(cli: Cli, plan: readonly Pruning[]): void {
  const { terminal } = cli;
  if (plan.length === 0) terminal.remark('there are no backups to decide about');
  else if (doomed(plan).length === 0) terminal.remark('nothing is to be removed');
  const without = plan.filter(({ keep, skipped }) => keep === null && skipped === null);
  const policies = [...new Set(without.map(({ policy }) => policy))];
  for (const policy of policies)
    terminal.remark(
      `policy ${policy} has no rules; in ${cli.configPath}: policies: { ${policy}: { keep: { last: 3, daily: 7 } } }`,
    );
}

function printObjects(
  cli: Cli,
  plan: readonly Pruning[],
  outcomes: ReadonlyMap<BackupEntry, PruneOutcome>,
): void {
  for (const { machine, policy, decisions } of plan) {
    for (const { entry, keep, reasons } of decisions) {
      const { id, pointInTime, storage, directory, state, protected: isProtected } = entry;
      const outcome = outcomes.get(entry);
      cli.terminal.object({
        id,
        machine,
        pointInTime,
        storage,
        directory,
        state,
        protected: isProtected,
        policy,
        keep: keep || outcome?.reasons !== undefined,
        reasons: outcome?.reasons ?? reasons,
        removed: outcome?.removed ?? false,
        error: outcome?.error ?? null,
      });
    }
  }
}
