import { formatDuration } from '../../common/time.ts';
import { formatBytes } from '../../common/units.ts';
import { isTemplate } from '../../storage/template.ts';
import {
  type Backup,
  backupJson,
  gatherBackups,
  lockRemark,
  protectionRemark,
  shortId,
  storedBytes,
  tellUnreachable,
  damagedRemark,
  verifiedRemark,
} from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { styled, type Text } from '../output.ts';
import { reading } from '../session.ts';
import { listHosts } from './hostBackup.ts';

/**
 * `stillpoint list [MACHINE]`. A storage that does not answer is an error, and hides no other one; a machine of which
 * no backup can be restored is one, too.
 */
export const list: RunVerb = (cli, [machine], options) => {
  if (options.flag('host')) {
    if (machine !== undefined)
      throw new CliError('USAGE', '--host lists the backups of every host', 'stillpoint list --host');
    return listHosts(cli);
  }
  return reading(cli, async ({ agent }) => {
    const unreachable = tellUnreachable(cli);
    const entries = await agent.backups.list(machine, unreachable.tell);
    const backups = await gatherBackups(agent, entries);
    if (cli.terminal.json) cli.terminal.object({ backups: backups.map(backupJson) });
    else if (backups.length > 0) printBackups(cli, backups);
    else if (unreachable.code === 0)
      cli.terminal.remark(
        machine === undefined ? 'there are no backups' : `there are no backups of ${machine}`,
      );
    if (unreachable.code !== 0) return unreachable.code;
    const lost = machinesWithoutWhole(backups);
    for (const name of lost) cli.terminal.warning(`no backup of ${name} can be restored: all are damaged`);
    return lost.length > 0 ? 5 : 0;
  });
};

/** Names of machines all of whose backups are damaged. */
export function machinesWithoutWhole(backups: readonly Pick<Backup, 'entry' | 'state'>[]): readonly string[] {
  const names = new Set(backups.map(({ entry }) => entry.machine.name));
  for (const { entry, state } of backups) if (state === 'Active') names.delete(entry.machine.name);
  return [...names];
}

function printBackups(cli: Cli, backups: readonly Backup[]): void {
  const right = { align: 'right' } as const;
  const columns = [
    { title: 'MACHINE' },
    { title: 'POINT IN TIME' },
    { title: 'MODE' },
    { title: 'CONSISTENCY' },
    { title: 'SIZE', ...right },
    { title: 'PAUSE', ...right },
    { title: 'STORAGE' },
    { title: 'STATE' },
    { title: 'ID' },
    { title: 'REMARKS' },
  ];
  cli.terminal.table(columns, backups.map(rowOf));
}

function rowOf(backup: Backup): readonly Text[] {
  const { entry, state, storages, localOnly } = backup;
  const { manifest } = entry;
  const size = storedBytes(entry);
  const problems = storages.flatMap(({ name, problem }) => (problem === null ? [] : [`${name}: ${problem}`]));
  const damage = damagedRemark(backup);
  const remarks = [
    ...problems,
    damage,
    protectionRemark(backup),
    lockRemark(backup),
    verifiedRemark(backup),
    manifest !== null && isTemplate(manifest) ? 'template' : '',
    localOnly ? 'local-only' : '',
  ]
    .filter((remark) => remark !== '')
    .join('; ');
  return [
    entry.machine.name,
    entry.pointInTime,
    manifest?.mode ?? '-',
    manifest?.consistency ?? '-',
    size === null ? '-' : formatBytes(size),
    typeof manifest?.pauseMs === 'number' ? formatDuration(manifest.pauseMs) : '-',
    storages.map(({ name }) => name).join(','),
    state === 'Active' ? styled('green', state) : styled('red', `${state} (damaged)`),
    entry.id === null ? '-' : shortId(entry.id),
    problems.length > 0 || damage !== '' ? styled('red', remarks) : styled('yellow', remarks),
  ];
}
