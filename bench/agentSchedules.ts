import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { execa } from 'execa';
import * as z from 'zod';
import type { AgentBench } from './agentBench.ts';
import { summarize } from './statistics.ts';

const minuteMs = 60_000;
const startSchema = z.object({ machines: z.number(), startMs: z.number() });
const minuteSchema = z.object({ processorMs: z.number(), runs: z.number() });

/** What the schedules of very many machines take of a processor, minute by minute; see `scheduledHost.ts`. */
export async function measureSchedules({
  machines,
  rounds,
}: Pick<AgentBench, 'machines' | 'rounds'>): Promise<object> {
  const program = join(import.meta.dirname, 'scheduledHost.ts');
  const host = execa(process.execPath, [program, String(machines), String(rounds)], {
    stderr: 'ignore',
    buffer: false,
  });
  const lines: unknown[] = [];
  for await (const line of createInterface({ input: host.stdout })) {
    process.stderr.write(`schedules: ${line}\n`);
    lines.push(JSON.parse(line));
  }
  await host;
  const [start, ...others] = lines;
  const minutes = others.map((line) => minuteSchema.parse(line));
  const share = minutes.map(({ processorMs }) => (100 * processorMs) / minuteMs);
  return {
    machines,
    minutes: minutes.length,
    percentOfACore: summarize(share, 3),
    runsPerMinute: summarize(minutes.map(({ runs }) => runs)),
    startProcessorMs: Math.round(startSchema.parse(start).startMs),
  };
}
