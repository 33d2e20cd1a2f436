import { gatherHost } from '../../agent/hostBackup.ts';
import { type HostStorages, listHostBackups } from '../../agent/storedHostBackups.ts';
import { describeChoice } from '../../agent/storageStates.ts';
import { noStorage } from '../../agent/storedBackups.ts';
import { targetsOf } from '../../config/storageGroups.ts';
import { errorRecord } from '../../common/errors.ts';
import type { HostManifest } from '../../storage/hostManifest.ts';
import type { HostBackupEntry } from '../../storage/storage.ts';
import type { Cli } from '../cli.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from '../exitCodes.ts';
import { styled } from '../output.ts';
import { shortId, tellUnreachable } from '../backups.ts';
import { changing, reading } from '../session.ts';

/** `stillpoint backup --host`: into every storage and one of each group, or the named ones; one that fails hides no other. */
export function backupHost(cli: Cli, storages: readonly string[] | undefined): Promise<ExitCode> {
  return changing(cli, async ({ agent }) => {
    const targets = [...new Set(storages ?? targetsOf(agent.parts.config))];
    if (targets.length === 0) throw noStorage(agent.parts.configPath);
    const { manifest, files } = await gatherHost(agent.parts.hypervisor, agent.parts.config);
    const codes: ExitCode[] = [];
    const stored: { readonly name: string; readonly directory: string }[] = [];
    const others = targets.filter((name) => agent.parts.storages.has(name));
    for (const target of targets) {
      try {
        const taken = [...others, ...stored.map(({ name }) => name)];
        const { storage, choice } = await agent.chooseStorage(target, taken);
        stored.push({ name: storage.name, directory: await storage.addHostBackup(manifest, files) });
        if (choice !== null && choice.passedOver.length > 0) cli.terminal.warning(describeChoice(choice));
        codes.push(0);
      } catch (error) {
        cli.terminal.error(error, target);
        codes.push(exitCodeOf(errorRecord(error).code));
      }
    }
    if (cli.terminal.json) cli.terminal.object({ ...manifest, storages: stored });
    else if (stored.length > 0) {
      cli.terminal.out(
        styled('green', 'backed up '),
        styled('bold', manifest.host.name),
        `: ${countsOf(manifest)}`,
      );
      for (const { name, directory } of stored) cli.terminal.out(`  ${name}: ${directory}`);
    }
    return combinedExitCode(codes);
  });
}

/** `stillpoint list --host`. */
export function listHosts(cli: Cli): Promise<ExitCode> {
  return reading(cli, async ({ agent }) => {
    const { entries, code } = await entriesOf(cli, agent.parts);
    if (cli.terminal.json) cli.terminal.object({ hostBackups: entries });
    else if (entries.length === 0) cli.terminal.remark('there are no backups of a host');
    else printEntries(cli, entries);
    return entries.some(({ problem }) => problem !== null) ? 5 : code;
  });
}

/** Every backup of a host in every storage, oldest first; a storage that does not answer is told. */
export async function entriesOf(
  cli: Cli,
  storages: HostStorages,
): Promise<{ readonly entries: readonly HostBackupEntry[]; readonly code: ExitCode }> {
  const unreachable = tellUnreachable(cli);
  const entries = await listHostBackups(storages, unreachable.tell);
  return { entries, code: unreachable.code };
}

function printEntries(cli: Cli, entries: readonly HostBackupEntry[]): void {
  const columns = ['HOST', 'POINT IN TIME', 'CONTENT', 'STORAGE', 'STATE', 'ID', 'DIRECTORY'];
  cli.terminal.table(
    columns.map((title) => ({ title })),
    entries.map(({ host, manifest, pointInTime, storage, problem, directory }) => [
      host,
      pointInTime,
      manifest === null ? '-' : countsOf(manifest),
      storage,
      problem === null ? styled('green', 'Active') : styled('red', `Killed: ${problem}`),
      manifest === null ? '-' : shortId(manifest.id),
      directory,
    ]),
  );
}

function countsOf({ items }: HostManifest): string {
  const counts = new Map<string, number>();
  for (const { kind } of items) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return [...counts].map(([kind, count]) => `${kind} ${count}`).join(', ');
}
