/**
 * One request to an agent in a process of its own, as the command line makes them: `agentRunner.ts CONFIG`, the
 * request as JSON on stdin, the answer as JSON on stdout, the log on stderr.
 */
import { json } from 'node:stream/consumers';
import * as z from 'zod';
import type { Agent } from '../../agent/agent.ts';
import type { JobRow } from '../../agent/jobs/job.ts';
import { openAgent } from '../../agent/main.ts';
import { releaseMachine } from '../../agent/release.ts';
import { endProcess, outputGone } from '../../common/endProcess.ts';
import { assertNever, errorRecord } from '../../common/errors.ts';
import { createLogger } from '../../common/log.ts';
import { loadConfig } from '../../config/config.ts';

const restore = {
  backup: z.string(),
  as: z.string().optional(),
  inPlace: z.boolean().optional(),
  start: z.enum(['resume', 'boot', 'none']).optional(),
  to: z.string().optional(),
  volumes: z.array(z.string()).optional(),
  map: z.record(z.string(), z.string()).optional(),
  networks: z.record(z.string(), z.string()).optional(),
  safetyCopy: z.boolean().optional(),
  instant: z.boolean().optional(),
};

/** Backups are made in mode `save` unless told. */
const mode = z.enum(['auto', 'save', 'live', 'disk', 'offline']).optional();

const request = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('backup'),
    machine: z.string(),
    mode,
    storages: z.array(z.string()).optional(),
    reread: z.boolean().optional(),
  }),
  z.strictObject({ kind: z.literal('planBackup'), machine: z.string(), mode }),
  z.strictObject({ kind: z.literal('restore'), ...restore }),
  z.strictObject({ kind: z.literal('planRestore'), ...restore }),
  z.strictObject({ kind: z.literal('verify'), backup: z.string() }),
  z.strictObject({
    kind: z.literal('boot'),
    backup: z.string(),
    start: z.enum(['resume', 'boot']).optional(),
    expect: z.string().optional(),
    deadlineMs: z.number(),
  }),
  z.strictObject({ kind: z.literal('list') }),
  z.strictObject({ kind: z.literal('delete'), backup: z.string(), storage: z.string() }),
  z.strictObject({ kind: z.literal('release'), machine: z.string() }),
  z.strictObject({ kind: z.literal('jobs') }),
  z.strictObject({ kind: z.literal('retry'), id: z.string() }),
  z.strictObject({ kind: z.literal('cancel'), id: z.string() }),
  z.strictObject({ kind: z.literal('recover') }),
]);

export type AgentRequest = z.infer<typeof request>;

async function main(configPath: string): Promise<object> {
  const warnings: string[] = [];
  const asked = request.parse(await json(process.stdin));
  try {
    const loaded = await loadConfig(configPath);
    await using open = await openAgent({
      loaded,
      configPath,
      log: createLogger({ level: loaded.config.agent.logLevel }),
      listener: { warning: (_jobId, message) => void warnings.push(message) },
    });
    return { ...(await answer(open.agent, asked)), warnings };
  } catch (error) {
    return { error: errorRecord(error), warnings };
  }
}

async function answer(agent: Agent, asked: AgentRequest): Promise<object> {
  const told = (job: JobRow): object => ({ job, error: job.error, steps: agent.parts.journal.steps(job.id) });
  switch (asked.kind) {
    case 'backup':
      return told(await agent.run(await agent.createBackup({ ...asked, mode: asked.mode ?? 'save' })));
    case 'planBackup':
      return { result: await agent.planBackup(asked) };
    case 'restore':
      return told(await agent.run(agent.createRestore(await agent.planRestore(asked))));
    case 'planRestore':
      return { result: await agent.planRestore(asked) };
    case 'verify': {
      const entry = await agent.backups.find(asked.backup);
      return { result: await agent.storage(entry.storage).verify(entry, { data: true }) };
    }
    case 'boot': {
      const plan = await agent.planBoot(await agent.backups.find(asked.backup), asked);
      return told(await agent.run(agent.createBoot(plan)));
    }
    case 'list':
      return {
        result: await agent.backups.list(undefined, (_, error) => {
          throw error;
        }),
      };
    case 'delete': {
      const entry = await agent.findBackup(asked.backup, asked.storage);
      await agent.deleteBackup(entry);
      return { result: entry.id };
    }
    case 'release':
      return { result: await releaseMachine(agent.parts, asked.machine) };
    case 'jobs':
      return { result: agent.parts.journal.list() };
    case 'retry':
      return told(await agent.retry(asked.id));
    case 'cancel':
      return told(await agent.cancel(asked.id));
    case 'recover':
      return { result: await agent.recoverOrphans() };
    default:
      return assertNever(asked);
  }
}

if (import.meta.main) {
  console.log(JSON.stringify(await main(process.argv[2] ?? '')));
  await outputGone();
  endProcess(0);
}
