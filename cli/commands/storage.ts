import { formatBytes } from '../../common/units.ts';
import type { RunVerb } from '../cli.ts';
import { exitCodeOf } from '../exitCodes.ts';
import { styled, type Text } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint storage list`: one that cannot be used is an error, and hides no other one. */
export const storageList: RunVerb = (cli) =>
  reading(cli, async ({ agent }) => {
    const { terminal } = cli;
    const storages = [...agent.parts.storages.values()];
    const checks = await Promise.all(
      storages.map(async (storage) => ({ kind: storage.kind, ...(await storage.check()) })),
    );
    if (terminal.json) terminal.object({ storages: checks });
    else if (checks.length === 0) terminal.remark(`no storage is configured in ${cli.configPath}`);
    else
      terminal.table(
        [
          { title: 'NAME' },
          { title: 'KIND' },
          { title: 'PLACE' },
          { title: 'FREE', align: 'right' },
          { title: 'STATE' },
        ],
        checks.map(({ name, kind, location, freeBytes, ok, problem }): readonly Text[] => [
          name,
          kind,
          location,
          freeBytes === null ? '-' : formatBytes(freeBytes),
          ok ? styled('green', 'usable') : styled('red', problem?.code ?? 'unusable'),
        ]),
      );
    for (const { name, problem } of checks) if (problem !== null) terminal.record(problem, `storage ${name}`);
    const first = checks.find(({ problem }) => problem !== null)?.problem;
    return first == null ? 0 : exitCodeOf(first.code);
  });
