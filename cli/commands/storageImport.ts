import { type FoundMachine, importStorage, type StorageFinds } from '../../agent/storageImport.ts';
import { shortId } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { styled, type Text } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage import NAME`: what is in a storage that this host does not know, and how to get it back. */
export const storageImport: RunVerb = (cli, [name = '']) =>
  reading(cli, async ({ agent }) => {
    const { hypervisor } = agent.parts;
    const { repositories } = agent;
    const finds = await importStorage(agent.storage(name), { repositories, hypervisor });
    const { terminal } = cli;
    if (terminal.json) terminal.object({ storage: name, ...finds });
    else printFinds(cli, name, finds);
    if (finds.hypervisorProblem !== null)
      terminal.record(finds.hypervisorProblem, 'which machines are on this host cannot be told');
    return isWhole(finds) ? 0 : 5;
  });

function isWhole({ machines, hosts, problems }: StorageFinds): boolean {
  const broken = machines.flatMap(({ backups }) => backups).some(({ problem }) => problem !== null);
  return !broken && problems.length === 0 && hosts.every(({ problem }) => problem === null);
}

/** What was found, for people. @param name of the storage */
export function printFinds({ terminal }: Pick<Cli, 'terminal'>, name: string, finds: StorageFinds): void {
  const { kind, location, machines, hosts, problems, differences } = finds;
  const total = machines.reduce((sum, { backups }) => sum + backups.length, 0);
  terminal.out(
    styled('green', 'readable '),
    `${name}: ${kind} ${location}, ${total} backups of ${machines.length} machines`,
  );
  for (const machine of machines) printMachine({ terminal }, name, machine);
  for (const [host, entries] of Map.groupBy(hosts, (entry) => entry.host)) {
    const newest = entries.at(-1)?.pointInTime ?? '';
    terminal.out(
      styled('bold', `host ${host}`),
      `: ${entries.length} backups of its definitions, the newest of ${newest}`,
    );
    terminal.remark(`  as files: stillpoint restore --host ${host}@latest --to DIR`);
    for (const { pointInTime, problem } of entries)
      if (problem !== null) terminal.warning(`host ${host} at ${pointInTime}: ${problem}`);
  }
  for (const difference of differences) terminal.warning(difference);
  for (const problem of problems) terminal.warning(problem);
  if (problems.length > 0) terminal.remark(`what can be done: stillpoint storage check ${name} --repair`);
  if (total > 0) terminal.remark(`only structure was looked at; every byte: stillpoint verify --all --data`);
}

function printMachine({ terminal }: Pick<Cli, 'terminal'>, storage: string, machine: FoundMachine): void {
  const { backups } = machine;
  terminal.out(styled('bold', machine.name), ` ${machine.uuid ?? ''}: ${presenceText(machine)}`);
  const columns = ['POINT IN TIME', 'MODE', 'MADE ON', 'STATE', 'ID', 'REMARKS'].map((title) => ({ title }));
  terminal.table(
    columns,
    backups.map(({ id, pointInTime, mode, host, problem, lockedUntil }): readonly Text[] => [
      pointInTime,
      mode ?? '-',
      host ?? '-',
      problem === null ? styled('green', 'whole') : styled('red', 'damaged'),
      id === null ? '-' : shortId(id),
      [problem ?? '', lockedUntil === null ? '' : `locked until ${lockedUntil.slice(0, 10)}`]
        .filter((remark) => remark !== '')
        .join('; '),
    ]),
  );
  const newest = backups.findLast(({ problem, id }) => problem === null && id !== null);
  if (newest?.id == null) terminal.warning(`no backup of ${machine.name} here can be restored`);
  else terminal.remark(`  ${restoreHint(machine, newest.id, storage)}`);
}

function presenceText({ presence, nextStartsFrom }: FoundMachine): string {
  if (presence === 'here')
    return nextStartsFrom == null
      ? 'is on this host, where libvirt knows no checkpoint of these backups: the next one reads everything'
      : `is on this host; the next backup is an increment from ${shortId(nextStartsFrom)}`;
  if (presence === 'name-taken') return 'is not on this host, but another machine has its name';
  return presence === 'elsewhere' ? 'is not on this host' : 'whether it is on this host is not known';
}

function restoreHint({ presence, name }: FoundMachine, id: string, storage: string): string {
  const restore = `stillpoint restore ${id} --storage ${storage}`;
  if (presence === 'here') return `put it back to this: ${restore} --in-place`;
  if (presence === 'name-taken') return `beside the other one: ${restore} --as ${name}-2`;
  return presence === 'elsewhere' ? `bring it here: ${restore}` : `only its images: ${restore} --to DIR`;
}
