import { resolve } from 'node:path';
import type { Agent } from '../../agent/agent.ts';
import { backupOfJob } from '../../agent/backupCopies.ts';
import type { BackupRequest } from '../../agent/backupRequests.ts';
import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { JobRow } from '../../agent/jobs/job.ts';
import { templateNameOf } from '../../agent/templates.ts';
import { errorRecord } from '../../common/errors.ts';
import { formatBytes } from '../../common/units.ts';
import { policyFor } from '../../config/policy.ts';
import { connectToService } from '../api/connect.ts';
import { type Outcome, printOutcome, printTable } from '../backupOutcome.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { combinedExitCode, exitCodeOf, exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { parseLabels } from '../labels.ts';
import { backupHost } from './hostBackup.ts';
import { type Choice, chooseMachines } from '../machineChoice.ts';
import type { Options } from '../options.ts';
import { runLimited } from '../parallel.ts';
import { PolicyCopies } from '../policyCopies.ts';
import { type ChangeSession, changing, reading } from '../session.ts';
import { printDryRun } from '../dryRun.ts';

/** What the service can be asked for; with any other option the work is done in this process. */
const knownByService: ReadonlySet<string> = new Set(['all', 'exclude', 'mode', 'reread', 'storage', 'label']);

const modes = ['auto', 'save', 'live', 'disk', 'offline'] as const;

type Wishes = Omit<BackupRequest, 'machine'>;

/** `stillpoint backup MACHINE… | --all`. */
export const backup: RunVerb = async (cli, names, options) => {
  const wishes = wishesOf(options);
  if (options.flag('host')) {
    if (names.length > 0)
      throw new CliError('USAGE', '--host backs up no machines', 'stillpoint backup --host');
    options.allowOnly(['host', 'storage'], 'backup --host', 'stillpoint backup --host [--storage NAME]');
    return backupHost(cli, wishes.storages);
  }
  const choose = chooserOf(names, options, wishes);
  if (options.typed.every((name) => knownByService.has(name))) {
    using client = await connectToService(cli);
    if (client !== null) {
      const { backupByService } = await import('./serviceBackup.ts');
      return await backupByService(cli, client, choiceOf(names, options), wishes);
    }
  }
  if (options.flag('dryRun'))
    return reading(cli, async ({ agent }) =>
      printDryRun(cli, agent, await choose(agent), options.flag('together')),
    );
  return changing(cli, async (session) => {
    const requests = await choose(session.agent);
    const copies = new PolicyCopies(cli, session);
    const onOutcome = (outcome: Outcome): void => {
      printOutcome(cli, outcome);
      const machine = outcome.backup?.entry.manifest?.machine;
      if (machine !== undefined) copies.add(machine);
    };
    const outcomes = options.flag('together')
      ? await runTogether(cli, session, requests, onOutcome)
      : await runAll(session, requests, onOutcome);
    const copyCodes = await copies.end();
    session.view.end();
    if (outcomes.length > 1 && !cli.terminal.json) printTable(cli, outcomes);
    return combinedExitCode([...outcomes.map(({ code }) => code), ...copyCodes]);
  });
};

function wishesOf(options: Options): Wishes {
  return {
    mode: modes.find((mode) => mode === options.text('mode')),
    storages: options.texts('storage'),
    labels: parseLabels(options.texts('label') ?? []),
    reread: options.flag('reread'),
  };
}

type Choose = (agent: Agent) => Promise<readonly BackupRequest[]>;

/** Finds out what is to be backed up. @throws CliError USAGE */
function chooserOf(names: readonly string[], options: Options, wishes: Wishes): Choose {
  const image = options.text('image');
  const name = options.text('name');
  const isOffline = wishes.mode === undefined || wishes.mode === 'auto' || wishes.mode === 'offline';
  if (image !== undefined) {
    if (names.length > 0 || options.flag('all') || !isOffline)
      throw new CliError(
        'USAGE',
        '--image is one image that no machine runs, in mode offline',
        'stillpoint backup --image PATH [--name NAME]',
      );
    const known = ['image', 'name', 'mode', 'reread', 'storage', 'label', 'together', 'dryRun'];
    options.allowOnly(known, 'backup --image', 'stillpoint backup --image PATH [--name NAME]');
    // A path may be relative to where this is typed; a volume of a pool must be one already.
    const isPath = image.startsWith('/') || image.startsWith('.');
    const template = { image: isPath ? resolve(image) : image };
    return () => Promise.resolve([{ machine: name ?? templateNameOf(image), template, ...wishes }]);
  }
  if (name !== undefined)
    throw new CliError('USAGE', '--name names an image', 'stillpoint backup --image PATH --name NAME');
  const choice = choiceOf(names, options);
  return async ({ parts }) => {
    const chosen = chooseMachines(await parts.hypervisor.machines(), parts, choice);
    return chosen.map((machine) => {
      const template = parts.config.templates.find((one) => one.name === machine);
      return { machine, template, ...wishes };
    });
  };
}

function choiceOf(typed: readonly string[], options: Options): Choice {
  return { typed, all: options.flag('all'), exclude: options.texts('exclude') ?? [] };
}

/** Several machines at a time, as the configuration allows; the order of the outcomes is that of the names. */
async function runAll(
  session: ChangeSession,
  requests: readonly BackupRequest[],
  onOutcome: (outcome: Outcome) => void,
): Promise<readonly Outcome[]> {
  const outcomes: Outcome[] = [];
  const { config, configPath } = session.agent.parts;
  const uses = ({ machine, storages }: BackupRequest): readonly string[] => {
    if (storages !== undefined) return storages;
    const decision = policyFor(config, machine, configPath);
    return decision.kind === 'policy' ? decision.policy.storages : [];
  };
  const limits = {
    total: config.agent.maxParallelMachines,
    uses: ([, request]: readonly [number, BackupRequest]) => uses(request),
    limitOf: (storage: string) => config.storages[storage]?.maxParallelMachines,
  };
  await runLimited([...requests.entries()], limits, async ([index, request]) => {
    const outcome = await runOne(session, request);
    outcomes[index] = outcome;
    onOutcome(outcome);
  });
  return outcomes;
}

/** One instant for all. Before it they fail together, afterwards each is on its own. */
async function runTogether(
  cli: Cli,
  { agent, view, interruption }: ChangeSession,
  requests: readonly BackupRequest[],
  onOutcome: (outcome: Outcome) => void,
): Promise<readonly Outcome[]> {
  const withMemory = requests.some(({ mode }) => mode === 'live');
  const howLong = withMemory
    ? `until the memory of all of them is written (${await memoryOf(agent, requests)})`
    : 'for a moment';
  const created = await agent.createTogether(requests);
  const names = created.map(({ machineName }) => machineName).join(', ');
  cli.terminal.remark(`${names} will stand still together ${howLong}`);
  for (const job of created) view.name(job.id, job.machineName);
  if (interruption.signal.aborted) for (const { id } of created) agent.parts.journal.requestCancel(id);
  const outcomes: Outcome[] = [];
  for (const job of await agent.runTogether(created)) {
    view.done(job.id);
    const outcome = await outcomeOf(agent, job);
    onOutcome(outcome);
    outcomes.push(outcome);
  }
  return outcomes;
}

/** What the pause of a group depends on. */
async function memoryOf({ parts }: Agent, requests: readonly BackupRequest[]): Promise<string> {
  let bytes = 0;
  for (const { machine, template } of requests) {
    if (template !== undefined) continue;
    const { uuid } = await parts.hypervisor.findMachine(machine);
    bytes += DomainXml.parse(await parts.hypervisor.definition(uuid, 'live')).memoryBytes;
  }
  return formatBytes(bytes);
}

async function runOne(
  { agent, view, interruption }: ChangeSession,
  request: BackupRequest,
): Promise<Outcome> {
  try {
    if (interruption.signal.aborted)
      throw new CliError('INTERRUPTED', 'not begun: the command was interrupted');
    const created = await agent.createBackup(request);
    view.name(created.id, created.machineName);
    // A signal that came before the job was written down could not reach it.
    if (interruption.signal.aborted) agent.parts.journal.requestCancel(created.id);
    const job = await agent.run(created);
    view.done(job.id);
    return await outcomeOf(agent, job);
  } catch (error) {
    const record = errorRecord(error);
    const nothing = { backup: null, storageChoices: [], warnings: [] };
    return { machine: request.machine, code: exitCodeOf(record.code), error: record, ...nothing };
  }
}

async function outcomeOf(agent: Agent, job: JobRow): Promise<Outcome> {
  const code = exitCodeOfJob(job);
  const error = code === 0 ? null : errorRecord(new JobFailure(job));
  const stored = code === 0 ? await backupOfJob(agent, job) : null;
  const { settings, warnings = [] } = agent.backupFacts(job) ?? {};
  const { storageChoices = [] } = settings ?? {};
  return { machine: job.machineName, code, error, backup: stored, storageChoices, warnings };
}
