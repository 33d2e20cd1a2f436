import {
  type GroupState,
  stateOfStorage,
  statesOfGroups,
  type StorageState,
} from '../../agent/storageStates.ts';
import { describeChoice } from '../../agent/storageStates.ts';
import { formatBytes } from '../../common/units.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { exitCodeOf } from '../exitCodes.ts';
import { styled, type StyledText, type Text } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage list`: one that cannot be used is an error, and hides no other one. */
export const storageList: RunVerb = (cli) =>
  reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    const states = await Promise.all([...agent.parts.storages.values()].map(stateOfStorage));
    const groups = await statesOfGroups(agent);
    if (terminal.json) terminal.object({ storages: states, storageGroups: groups });
    else if (states.length === 0) terminal.remark(`no storage is configured in ${cli.configPath}`);
    else print(cli, states, groups);
    for (const { name, problem } of states) if (problem !== null) terminal.record(problem, `storage ${name}`);
    for (const { warning } of states) if (warning !== null) terminal.warning(warning);
    for (const { problem } of groups) if (problem !== null) terminal.record(problem);
    const first = [...states, ...groups].find(({ problem }) => problem !== null)?.problem;
    return first == null ? 0 : exitCodeOf(first.code);
  });

function print({ terminal }: Cli, states: readonly StorageState[], groups: readonly GroupState[]): void {
  const right = { align: 'right' } as const;
  const titles = [
    { title: 'NAME' },
    { title: 'KIND' },
    { title: 'PLACE' },
    { title: 'FREE', ...right },
    { title: 'CAPACITY', ...right },
    { title: 'STORED', ...right },
    { title: 'QUOTA', ...right },
    { title: 'STATE' },
  ];
  const size = (bytes: number | null): string => (bytes === null ? '-' : formatBytes(bytes));
  terminal.table(
    titles,
    states.map((state): readonly Text[] => [
      state.name,
      state.kind,
      state.location,
      size(state.freeBytes),
      size(state.capacityBytes),
      size(state.storedBytes),
      size(state.quotaBytes),
      stateText(state),
    ]),
  );
  for (const { name, storages, choice } of groups) {
    const now = choice === null ? 'none of them can be used' : describeChoice(choice);
    terminal.out(styled('bold', name), ` (${storages.join(', ')}): ${now}`);
  }
}

function stateText({ ok, problem, warning }: StorageState): StyledText {
  if (!ok) return styled('red', problem?.code ?? 'unusable');
  return warning === null ? styled('green', 'usable') : styled('yellow', 'nearly full');
}
