/**
 * The agent under test, as a process of its own that can be killed: `node agent.ts COMMAND` (command.ts). It
 * reports every named moment of its jobs, so that the tests need no list of them, and dies at the one that
 * STILLPOINT_TEST_CRASH_AT names.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { repairOffline } from '../../../agent/backup/offlineRepair.ts';
import type { Agent } from '../../../agent/agent.ts';
import { crashPointOf } from '../../../agent/jobs/crashPoint.ts';
import type { JobRow } from '../../../agent/jobs/job.ts';
import { Journal } from '../../../agent/jobs/journal.ts';
import { openAgent } from '../../../agent/main.ts';
import { assertNever } from '../../../common/errors.ts';
import { createLogger } from '../../../common/log.ts';
import { loadConfig } from '../../../config/config.ts';
import { type Action, commandSchema, type Line } from './command.ts';

const command = commandSchema.parse(JSON.parse(process.argv[2] ?? ''));
const loaded = await loadConfig(command.config);
const crash = crashPointOf(process.env);
let halted = false;

if (command.action.do === 'repair-offline') {
  using journal = new Journal(join(loaded.config.agent.stateDir, 'journal.sqlite'));
  const repairs = await repairOffline(journal);
  say({ repaired: repairs.map(({ image, action }) => ({ image, action })) });
} else {
  const log = createLogger({ level: 'warn' });
  await using open = await openAgent({ loaded, configPath: command.config, log, onPoint });
  for (const row of await perform(open.agent, command.action)) say({ job: described(row) });
}

async function perform(
  agent: Agent,
  action: Exclude<Action, { do: 'repair-offline' }>,
): Promise<readonly JobRow[]> {
  switch (action.do) {
    case 'backup':
      return [
        await agent.run(await agent.createBackup({ machine: action.machine, mode: action.mode ?? 'save' })),
      ];
    case 'restore': {
      const { do: _, ...request } = action;
      return [await agent.run(agent.createRestore(await agent.planRestore(request)))];
    }
    case 'recover':
      return agent.recoverOrphans();
    default:
      return assertNever(action);
  }
}

async function onPoint(point: string): Promise<void> {
  // A pipe takes it at once, so the line is out before the process dies.
  say({ point });
  crash?.(point);
  if (halted || command.halt?.point !== point) return;
  halted = true;
  say({ halted: point });
  await readFile(command.halt.gate);
}

function described({ id, kind, state, error, holdsMachine }: JobRow): Extract<Line, { job: unknown }>['job'] {
  return { id, kind, state, code: error?.code ?? null, message: error?.message ?? null, holdsMachine };
}

function say(line: Line): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
