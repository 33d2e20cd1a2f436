import { formatBytes } from '../../common/units.ts';
import type { RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { changing } from '../session.ts';

const repackDefault = 50;

/** `stillpoint storage gc NAME`. */
export const storageGc: RunVerb = (cli, [name = ''], options) => {
  const percent = Number(options.text('repack') ?? repackDefault);
  if (!Number.isInteger(percent) || percent < 0 || percent > 100)
    throw new CliError(
      'USAGE',
      '--repack takes a whole number from 0 to 100',
      'stillpoint storage gc --help',
    );
  return changing(cli, async ({ agent, interruption }) => {
    const { signal } = interruption;
    const fence = options.flag('fence');
    const report = await agent.repositories.collect(name, { fence, repackBelow: percent / 100, signal });
    const { terminal } = cli;
    const waiting = report.waitingFor.length > 0;
    if (terminal.json) {
      terminal.object({ storage: name, ...report });
      return waiting ? 7 : 0;
    }
    if (!waiting) {
      terminal.out(
        `freed ${formatBytes(report.freedBytes)}: ${report.packsDeleted} packs removed, ${report.packsRepacked} repacked`,
      );
      if (report.packsLocked > 0)
        terminal.remark(
          `${report.packsLocked} packs stay that are locked, the first until ${report.lockedUntil}: run this again then`,
        );
      for (const id of report.fencedBackups)
        terminal.remark(`backup ${id} was given up: it can never be committed`);
      return 0;
    }
    for (const { backupId, announcement } of report.waitingFor)
      terminal.warning(
        `backup ${backupId} is being written${announcement === null ? '' : ` by ${announcement.host} since ${announcement.startedAt}`}, or its agent died`,
      );
    terminal.remark(
      `nothing was removed: the collection goes on when these have ended (stillpoint storage gc ${name}); with --fence they are given up`,
    );
    return 7;
  });
};
