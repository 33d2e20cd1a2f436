import { backupOf } from '../../agent/backupCopies.ts';
import { backupLockedError, lockedNow } from '../../storage/backupLock.ts';
import { protectedError } from '../../storage/protection.ts';
import { backupJson, backupOfEntry, findBackup, noCopyIn, shortId } from '../backups.ts';
import type { RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';
import { deleteHost } from './hostBackups.ts';

/**
 * `stillpoint delete BACKUP`: every copy of it, or those in some storages; or none where one of them is protected or
 * locked.
 */
export const deleteBackup: RunVerb = (cli, [reference = ''], options) => {
  if (options.flag('host')) {
    options.allowOnly(['host', 'yes'], 'delete --host', 'stillpoint delete --host BACKUP');
    return deleteHost(cli, reference, options);
  }
  return changing(cli, async ({ agent, interruption }) => {
    const only = options
      .texts('storage')
      ?.flatMap((name) => agent.storagesOf(name).map((storage) => storage.name));
    const isMeant = (storage: string): boolean => only?.includes(storage) ?? true;
    const found = await findBackup(cli, agent.backups, reference);
    // A copy in a storage that does not answer would stay: then nothing is deleted.
    const everywhere = await backupOfEntry(agent, found, (storage, error) => {
      if (isMeant(storage)) throw error;
    });
    const copies = everywhere.entries.filter(({ storage }) => isMeant(storage));
    if (copies.length === 0) throw noCopyIn(reference, only ?? []);
    const backup = await backupOf(agent, copies);
    const { entry } = backup;
    const shielded = backup.entries.find((copy) => copy.protected);
    if (shielded !== undefined) throw protectedError(shielded, shielded.protectedReason);
    for (const copy of backup.entries) {
      const until = lockedNow(copy, new Date());
      if (until !== null) throw backupLockedError(copy, until);
    }
    const tell = cli.terminal.json
      ? cli.terminal.err.bind(cli.terminal)
      : cli.terminal.out.bind(cli.terminal);
    tell(
      'delete for good: ',
      styled('bold', entry.machine.name),
      ` at ${entry.pointInTime}, id ${shortId(entry.id ?? '-')}`,
    );
    for (const { name, directory } of backup.storages) tell(`  ${name}: ${directory}`);
    await confirm(cli, options, interruption.signal);
    for (const copy of backup.entries) await agent.deleteBackup(copy);
    if (cli.terminal.json) cli.terminal.object({ ...backupJson(backup), state: 'Deleted' });
    else cli.terminal.out('deleted');
    return 0;
  });
};
