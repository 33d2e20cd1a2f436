import { describeChoice, type StorageChoice } from '../agent/storageStates.ts';
import type { ErrorRecord } from '../common/errors.ts';
import { formatBytes } from '../common/units.ts';
import { type Backup, backupJson, howRead, shortId, storedBytes } from './backups.ts';
import type { Cli } from './cli.ts';
import type { ExitCode } from './exitCodes.ts';
import { styled } from './output.ts';

/** How the backup of one machine ended. */
export interface Outcome {
  readonly machine: string;
  readonly code: ExitCode;
  readonly error: ErrorRecord | null;
  readonly backup: Backup | null;
  /** Which storages were chosen among those of a group. */
  readonly storageChoices: readonly StorageChoice[];
  readonly warnings: readonly string[];
}

/** Tells how the backup of one machine ended. */
export function printOutcome(cli: Cli, outcome: Outcome): void {
  const { machine, error, backup: stored, storageChoices, warnings } = outcome;
  const { terminal } = cli;
  if (error !== null) terminal.record(error, machine);
  if (stored === null) return;
  if (terminal.json) {
    terminal.object({ ...backupJson(stored), storageChoices, warnings });
    return;
  }
  const { manifest, pointInTime, id } = stored.entry;
  const pause =
    typeof manifest?.pauseMs === 'number' ? `paused ${Math.round(manifest.pauseMs)} ms` : 'no pause';
  const size = formatBytes(storedBytes(stored.entry) ?? 0);
  terminal.out(
    styled('green', 'backed up '),
    styled('bold', machine),
    ` at ${pointInTime}, ${pause}, ${size}, id ${shortId(id ?? '')}`,
  );
  if (manifest !== null) terminal.out(`  mode ${manifest.mode}: ${manifest.modeReason}`);
  for (const copy of stored.storages) terminal.out(`  ${copy.name}: ${copy.directory}`);
  for (const choice of storageChoices) terminal.out(`  ${describeChoice(choice)}`);
  for (const volume of manifest?.volumes ?? []) terminal.out(`  ${volume.target}: ${howRead(volume)}`);
}

/** How all of them ended, at a glance. */
export function printTable(cli: Cli, outcomes: readonly Outcome[]): void {
  const titles = ['MACHINE', 'RESULT', 'POINT IN TIME'];
  const rows = outcomes.map(({ machine, error, backup: stored }) => [
    machine,
    error === null ? styled('green', 'done') : styled('red', error.code),
    stored?.entry.pointInTime ?? '-',
  ]);
  cli.terminal.out('');
  cli.terminal.table(
    titles.map((title) => ({ title })),
    rows,
  );
}
