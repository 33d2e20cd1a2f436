/**
 * scheduledHost.ts MACHINES MINUTES: the schedules of the service of a host with so many simulated machines, as a process
 * of its own: nine of ten are backed up daily, all over the day, one each hour. What a backup itself costs is left out:
 * its job is written down, begun and ended at once. It stops and starts its machine, as one in mode `save` does.
 * Prints one line of JSON when all machines are known, and one for each minute.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent, type AgentParts } from '../agent/agent.ts';
import type { BackupRequest } from '../agent/backupRequests.ts';
import { Engine } from '../agent/jobs/engine.ts';
import type { JobRow } from '../agent/jobs/job.ts';
import { Journal } from '../agent/jobs/journal.ts';
import { thisOwner } from '../agent/jobs/owner.ts';
import type { ScheduledJob, ScheduleRow } from '../agent/jobs/scheduleRows.ts';
import type { MachineSummary } from '../agent/hypervisor/hypervisor.ts';
import { newState } from '../agent/schedule/runState.ts';
import { Pulse } from '../agent/service/pulse.ts';
import { actOnSchedules } from '../agent/service/schedules.ts';
import { Timetables } from '../agent/service/timetables.ts';
import { newId } from '../common/ids.ts';
import { createLogger } from '../common/log.ts';
import { type Config, configSchema } from '../config/schema.ts';
import { lifecycleEvent } from '../test/sim/events.ts';
import type { SimulatedHypervisor } from '../test/sim/simulatedHypervisor.ts';
import { SimulatedWorld } from '../test/sim/world.ts';

const hours = Array.from({ length: 24 }, (_, hour) => String(hour).padStart(2, '0'));
const minuteMs = 60_000;
const configPath = '/etc/stillpoint/config.yaml';

/** Its backups are jobs of the journal, and nothing else. */
class BookkeepingAgent extends Agent {
  runs = 0;
  readonly #connection: SimulatedHypervisor;

  constructor(parts: AgentParts & { readonly hypervisor: SimulatedHypervisor }) {
    super(parts);
    this.#connection = parts.hypervisor;
  }

  override async createBackup({ machine }: BackupRequest, scheduled?: ScheduledJob): Promise<JobRow> {
    return this.parts.journal.create({
      id: newId(),
      kind: 'backup',
      machineUuid: machine,
      machineName: scheduled?.schedule?.machineName ?? machine,
      state: 'initialized',
      record: { settings: { storages: ['local'] } },
      owner: thisOwner(),
      scheduled,
    });
  }

  override async run(job: JobRow): Promise<JobRow> {
    const { journal } = this.parts;
    this.runs += 1;
    journal.write(job.id, { state: 'snapshotting', begun: 'preflight' });
    for (const event of ['stoppedSaved', 'startedRestored'] as const)
      this.#connection.deliver(lifecycleEvent(job.machineUuid, event));
    journal.end(job.id, { state: 'finished' });
    return journal.get(job.id);
  }
}

function configuration(directory: string): Config {
  const daily = hours.map((hour) => [
    `at${hour}`,
    { mode: 'save', schedule: { cron: `0 ${Number(hour)} * * *`, jitterSeconds: 3600 } },
  ]);
  return configSchema.parse({
    agent: {
      stateDir: directory,
      socket: join(directory, 'agent.sock'),
      ramDisk: null,
      maxParallelMachines: 8,
    },
    storages: { local: { kind: 'directory', path: directory } },
    policies: {
      ...Object.fromEntries(daily),
      hourly: { mode: 'save', schedule: { cron: '0 * * * *', jitterSeconds: 3600 } },
    },
    machines: [
      ...hours.map((hour) => ({ match: `at${hour}-*`, policy: `at${hour}` })),
      { match: 'hourly-*', policy: 'hourly' },
    ],
  });
}

async function addMachines(world: SimulatedWorld, count: number): Promise<void> {
  for (let index = 0; index < count; index += 1) {
    const policy = index % 10 === 0 ? 'hourly' : `at${hours[index % hours.length]}`;
    await world.addMachine({ name: `${policy}-${index}`, uuid: randomUUID(), volumes: [] });
  }
}

/** As if the service had run for long: what was due by now has been done, what is due in the next minutes has not. */
function rowsOf(machines: readonly MachineSummary[], config: Config): readonly ScheduleRow[] {
  const timetables = new Timetables({ config, configPath });
  const nowMs = Date.now();
  return machines.map((about) => {
    const machine = timetables.of(about);
    if (machine === null) throw new Error(`${about.name} has no schedule`);
    const { uuid: machineUuid, name: machineName, slots, table } = machine;
    const state = newState(table, nowMs - table.jitterMs);
    return { machineUuid, machineName, slots, state, jobId: null, lastWord: null, seenAtMs: nowMs };
  });
}

const processorMs = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};

async function main(machines: number, minutes: number): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-bench-'));
  await mkdir(join(directory, 'world'));
  const stop = new AbortController();
  try {
    await using world = await SimulatedWorld.create(join(directory, 'world'));
    await addMachines(world, machines);
    using journal = new Journal(join(directory, 'journal.sqlite'));
    const config = configuration(directory);
    const hypervisor = world.connect();
    journal.writeSchedules(rowsOf(await hypervisor.machines(), config));
    const agent = new BookkeepingAgent({
      config,
      configPath,
      hypervisor,
      journal,
      engine: new Engine({ journal }),
      storages: new Map(),
      report: (_, error) => console.error(error),
    });
    // As systemd has it: each line is made and written.
    const log = createLogger({ level: 'info' });
    const pulse = new Pulse();
    const beganMs = processorMs();
    const schedules = actOnSchedules(agent, { log, signal: stop.signal, pulse });
    while (pulse.nextDueMs() === null) await sleep(100);
    await sleep(5_000);
    const told = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
    told({ machines, startMs: processorMs() - beganMs });
    for (let minute = 0; minute < minutes; minute += 1) {
      const before = { cpuMs: processorMs(), runs: agent.runs };
      await sleep(minuteMs);
      told({ processorMs: processorMs() - before.cpuMs, runs: agent.runs - before.runs });
    }
    stop.abort();
    await schedules;
  } finally {
    stop.abort();
    await rm(directory, { recursive: true, force: true });
  }
}

await main(Number(process.argv[2]), Number(process.argv[3]));
