import type { RunVerb } from '../cli.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';
import { storageRepair } from './storageRepair.ts';

/** `stillpoint storage check NAME`. */
export const storageCheck: RunVerb = (cli, arguments_, options) => {
  if (options.flag('repair')) return storageRepair(cli, arguments_, options);
  options.allowOnly(
    ['data', 'rebuildIndex'],
    'storage check without --repair',
    'stillpoint storage check --help',
  );
  return check(cli, arguments_, options);
};

const check: RunVerb = (cli, [name = ''], options) =>
  changing(cli, async ({ agent, interruption }) => {
    const { terminal } = cli;
    const { signal } = interruption;
    const rebuilt = await agent.repositories.rebuildIndex(name, { dryRun: !options.flag('rebuildIndex') });
    const report = await agent.repositories.verify(name, { data: options.flag('data'), signal });
    const packs = report.damagedPacks.map(({ id, reason }) => ({ id: id.toString('hex'), reason }));
    if (terminal.json) {
      const backups = report.backups.map(({ id, problems }) => ({ id, problems }));
      terminal.object({ storage: name, ...report, backups, damagedPacks: packs, index: rebuilt });
      return report.ok ? 0 : 5;
    }
    for (const { name: object, reason } of rebuilt.problems) terminal.warning(`${object}: ${reason}`);
    if (rebuilt.packsAdded > 0)
      terminal.remark(
        options.flag('rebuildIndex')
          ? `${rebuilt.packsAdded} packs that no index named are named now`
          : `no index names ${rebuilt.packsAdded} packs: stillpoint storage check ${name} --rebuild-index`,
      );
    for (const { id, reason } of packs) terminal.warning(`pack ${id}: ${reason}`);
    for (const { id, problems } of report.backups)
      for (const problem of problems) terminal.warning(`backup ${id}: ${problem}`);
    const bad = report.backups.filter(({ problems }) => problems.length > 0).length;
    terminal.out(
      report.ok ? styled('green', 'ok') : styled('red', 'damaged'),
      ` ${report.backups.length} backups, ${bad} damaged${report.data ? '' : ' (structure only; --data reads every byte)'}`,
    );
    return report.ok ? 0 : 5;
  });
