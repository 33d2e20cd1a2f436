import { once } from 'node:events';
import type { Agent } from '../../agent/agent.ts';
import { formatBytes } from '../../common/units.ts';
import { findBackup } from '../backups.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { Interruption } from '../interruption.ts';
import { styled } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage mount BACKUP DIR`: until a signal ends it. */
export const storageMount: RunVerb = (cli, [backup = '', directory = ''], options) =>
  reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    using interruption = new Interruption(terminal, agent.parts.journal);
    await clearAbandoned(cli, agent);
    await findBackup(cli, agent.backups, backup);
    const entry = await agent.findBackup(backup, options.text('storage'));
    const volumes = options.texts('volume')?.flatMap((targets) => targets.split(','));
    const { looks } = agent.looking;
    const look = await agent.looking.mount(entry, directory, volumes);
    try {
      if (terminal.json) terminal.object({ mount: { ...look, owner: undefined } });
      else {
        terminal.out(
          styled('bold', look.backup.machine),
          ` as of ${look.backup.pointInTime}, read-only, until Ctrl-C or: stillpoint storage unmount ${look.directory ?? ''}`,
        );
        for (const { file, virtualSizeBytes } of look.volumes)
          terminal.out(`  ${file ?? ''}, ${formatBytes(virtualSizeBytes)}`);
      }
      if (!interruption.signal.aborted) await ended(interruption.signal);
    } finally {
      await looks.end(look);
    }
    terminal.remark(`${look.directory ?? ''} is no mount any more`);
    return 0;
  });

/** `stillpoint storage unmount DIR`. */
export const storageUnmount: RunVerb = (cli, [directory = '']) =>
  reading(cli, async ({ agent }) => {
    const { looks } = agent.looking;
    await looks.stop(await looks.at(directory));
    return 0;
  });

/** Takes away what killed commands have left; one that somebody uses stays, and is told. */
export async function clearAbandoned({ terminal }: Pick<Cli, 'terminal'>, agent: Agent): Promise<void> {
  const { looks } = agent.looking;
  for (const look of await looks.abandoned()) {
    try {
      await looks.end(look);
      terminal.remark(`took away what a killed command had left of ${look.directory ?? look.backup.id}`);
    } catch (error) {
      terminal.error(error, look.directory ?? look.backup.id);
    }
  }
}

/** A promise alone does not keep a process. */
async function ended(signal: AbortSignal): Promise<void> {
  const awake = setInterval(() => undefined, 2 ** 30);
  try {
    await once(signal, 'abort');
  } finally {
    clearInterval(awake);
  }
}
