import { formatBytes } from '../../common/units.ts';
import type { RunVerb } from '../cli.ts';
import type { Text } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage show NAME`. */
export const storageShow: RunVerb = (cli, [name = '']) =>
  reading(cli, async ({ agent }) => {
    const usage = await agent.repositories.usage(name);
    const { terminal } = cli;
    // What is stored is shared between backups and machines, and compressed.
    const ratio = usage.storedBytes === 0 ? null : usage.referencedBytes / usage.storedBytes;
    if (terminal.json) {
      terminal.object({ storage: name, ...usage, ratio });
      return 0;
    }
    terminal.out(`${name}: ${usage.location}, made ${usage.createdAt}`);
    terminal.out(
      `stored      ${formatBytes(usage.storedBytes)} in ${usage.packs} packs, ${usage.chunks} chunks${usage.freeBytes === null ? '' : `; ${formatBytes(usage.freeBytes)} free`}`,
    );
    terminal.out(
      `referenced  ${formatBytes(usage.referencedBytes)} by ${usage.backups} backups${ratio === null ? '' : `: ${ratio.toFixed(1)} times what is stored`}`,
    );
    if (usage.machines.length > 0) {
      terminal.table(
        [{ title: 'MACHINE' }, { title: 'BACKUPS', align: 'right' }, { title: 'REFERENCED', align: 'right' }],
        usage.machines.map((machine): readonly Text[] => [
          machine.name,
          String(machine.backups),
          formatBytes(machine.referencedBytes),
        ]),
      );
    }
    if (usage.openSessions > 0)
      terminal.remark(`${usage.openSessions} backups are being written, or their agents died`);
    if (usage.damagedBackups > 0) {
      terminal.warning(`${usage.damagedBackups} backups cannot be read: stillpoint storage check ${name}`);
      return 5;
    }
    return 0;
  });
