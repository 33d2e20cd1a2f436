import type { LoadedConfig } from '../../config/config.ts';
import { loadConfig } from '../../config/config.ts';
import { withPushed } from '../../config/hostConfig.ts';
import { loadOrigins, type Origin } from '../../config/origins.ts';
import { PushedFile } from '../../config/pushedFile.ts';
import { isPushedName } from '../../config/pushedPolicies.ts';
import { wholeSchedule } from '../../config/schema.ts';
import type { Config, PolicyConfig } from '../../config/schema.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { styled, type Text } from '../output.ts';

/** Where something comes from: a place in a file, or who has pushed it. null: the program itself makes it. */
type From = Origin | { readonly revision: number; readonly setBy: string; readonly setAt: string } | null;

interface PolicyRow {
  readonly name: string;
  readonly from: From;
  readonly policy: PolicyConfig;
}

interface RuleRow {
  readonly rule: Config['machines'][number];
  readonly from: From;
}

/** `stillpoint policies`: exit code 3 when what was pushed cannot be used as it is. */
export const policies: RunVerb = async (cli) => {
  const optional = !cli.configIsNamed;
  const local = await loadConfig(cli.configPath, { optional });
  const loaded = withPushed(local, await new PushedFile(local.config.agent.stateDir).read());
  const names = Object.keys(local.config.policies);
  const count = local.config.machines.length;
  const origins = await loadOrigins(cli.configPath, { policies: names, machines: count }, { optional });
  const pushed = pushedFrom(loaded);
  const all = Object.entries(loaded.config.policies).map(([name, policy]): PolicyRow => {
    const from = isPushedName(name) ? pushed : (origins.policies.get(name) ?? null);
    return { name, from, policy };
  });
  const rules = loaded.config.machines.map((rule, index): RuleRow => {
    return { rule, from: origins.machines[index] ?? pushed };
  });
  if (cli.terminal.json) cli.terminal.object(asJson(loaded, all, rules));
  else print(cli, loaded, { all, rules });
  return loaded.pushed.problems.length > 0 ? 3 : 0;
};

function pushedFrom({ pushed: { kept } }: LoadedConfig): From {
  if (kept === null) return null;
  const { revision, setBy, setAt } = kept;
  return { revision, setBy, setAt };
}

function print(
  { terminal }: Cli,
  loaded: LoadedConfig,
  { all, rules }: { readonly all: readonly PolicyRow[]; readonly rules: readonly RuleRow[] },
): void {
  const titles = (text: string) => text.split(',').map((title) => ({ title }));
  terminal.out(styled('bold', 'pushed: '), pushedText(loaded));
  terminal.out();
  terminal.table(
    titles('POLICY,SCHEDULE,STORAGES,FROM'),
    all.map(({ name, from, policy }): readonly Text[] => [
      name,
      scheduleText(policy),
      policy.storages?.join(' ') ?? 'all',
      fromText(from),
    ]),
  );
  terminal.out();
  terminal.table(
    titles('MACHINES,POLICY,FROM'),
    [...rules, { rule: { match: 'all others', policy: 'default' }, from: null }].map(
      ({ rule, from }): readonly Text[] => [
        rule.match,
        rule.exclude === true ? styled('yellow', 'excluded') : (rule.policy ?? 'default'),
        fromText(from),
      ],
    ),
  );
  for (const problem of loaded.pushed.problems) terminal.warning(`of what was pushed: ${problem}`);
}

function pushedText({ config, pushed: { kept, problems } }: LoadedConfig): string {
  if (!config.controller.acceptPolicies) return 'not accepted here (controller.acceptPolicies: false)';
  if (kept === null) return problems.length > 0 ? 'it cannot be read' : 'nothing';
  const { revision, document, setBy, setAt } = kept;
  return `${document === null ? 'taken away by' : 'by'} ${setBy}, revision ${revision}, ${setAt}`;
}

function fromText(from: From): string {
  if (from === null) return '-';
  return 'file' in from ? `${from.file}:${from.line}` : `${from.setBy}, revision ${from.revision}`;
}

function scheduleText({ schedule }: PolicyConfig): string {
  if (schedule === undefined) return '-';
  const { cron, every } = wholeSchedule(schedule);
  return cron ?? `every ${every}`;
}

function asJson(
  { config, pushed: { kept, problems } }: LoadedConfig,
  all: readonly PolicyRow[],
  rules: readonly RuleRow[],
): Readonly<Record<string, unknown>> {
  return {
    pushed: {
      accepted: config.controller.acceptPolicies,
      revision: kept?.revision ?? null,
      setBy: kept?.setBy ?? null,
      setAt: kept?.setAt ?? null,
      removed: kept !== null && kept.document === null,
      problems,
    },
    policies: all,
    machines: rules.map(({ rule, from }) => ({ ...rule, from })),
  };
}
