import type { RepairAction, RepairReport } from '../../agent/repositories.ts';
import type { RunVerb } from '../cli.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';
import type { Terminal } from '../terminal.ts';

const words: Readonly<Record<RepairAction, readonly [will: string, did: string]>> = {
  index: ['would make new index objects', 'made new index objects'],
  quarantine: ['would quarantine', 'quarantined'],
  salvage: ['would copy what can be read of', 'copied what can be read of'],
  fence: ['would make the fence', 'made the fence'],
  'set-aside': ['would move to damaged/', 'moved to damaged/'],
  copy: ['would write', 'wrote'],
  'bring-back': ['would bring back', 'brought back'],
};

/** `stillpoint storage check NAME --repair`: a dry run, unless `--apply` is there. */
export const storageRepair: RunVerb = (cli, [name = ''], options) => {
  options.allowOnly(
    ['data', 'repair', 'apply', 'alone'],
    'storage check --repair',
    'stillpoint storage check --help',
  );
  return changing(cli, async ({ agent, interruption }) => {
    const report = await agent.repositories.repair(name, {
      data: options.flag('data'),
      apply: options.flag('apply'),
      isAlone: options.flag('alone'),
      signal: interruption.signal,
    });
    const { steps, kept, touched, applied } = report;
    const isInOrder = touched.length === 0 && kept.length === 0 && (applied || steps.length === 0);
    if (cli.terminal.json) cli.terminal.object({ storage: name, ok: isInOrder, ...report });
    else print(cli.terminal, `${name}${options.flag('data') ? ' --data' : ''}`, report, isInOrder);
    return isInOrder ? 0 : 5;
  });
};

/** @param what the storage, and how it was looked at, as typed */
function print(terminal: Terminal, what: string, report: RepairReport, isInOrder: boolean): void {
  const { steps, kept, touched, applied } = report;
  for (const { action, name: object, reason } of steps)
    terminal.out(words[action][applied ? 1 : 0], ` ${object}: ${reason}`);
  for (const { name: object, reason } of kept) terminal.warning(`${object} stays: ${reason}`);
  for (const { id, machine, problems, lostChunks, healableChunks } of touched) {
    terminal.warning(`backup ${id}${machine === null ? '' : ` of ${machine}`}: ${problems.join('; ')}`);
    if (lostChunks > 0)
      terminal.remark(
        healableChunks === 0
          ? `  no backup to come heals it: the newest one of ${machine} does not need what is lost`
          : `  the next backup of ${machine} heals up to ${healableChunks} of ${lostChunks} lost chunks, as far as the machine has the same data`,
      );
  }
  if (!applied && steps.length > 0)
    terminal.remark(`nothing was done: stillpoint storage check ${what} --repair --apply`);
  terminal.out(
    isInOrder ? styled('green', 'in order') : styled('red', 'damaged'),
    ` ${steps.length} repairs ${applied ? 'made' : 'to make'}, ${touched.length} backups touched`,
  );
}
