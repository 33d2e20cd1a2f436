import { resolve } from 'node:path';
import type { RestoreRequest } from '../../agent/restore/request.ts';
import { findBackup } from '../backups.ts';
import type { RunVerb } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { exitCodeOfJob } from '../exitCodes.ts';
import { JobFailure } from '../jobFailure.ts';
import { CliError } from '../errors.ts';
import type { Options } from '../options.ts';
import { printPlan, printRestored } from '../restoreView.ts';
import { changing } from '../session.ts';
import { restoreFiles } from './files.ts';
import { restoreHost } from './hostBackups.ts';
import { restoreDevice } from './restoreDevice.ts';

/** `stillpoint restore BACKUP`: plan, question, work. */
export const restore: RunVerb = (cli, [backup = ''], options) => {
  if (options.flag('host')) {
    options.allowOnly(['host', 'to', 'yes'], 'restore --host', 'stillpoint restore --host BACKUP --to DIR');
    return restoreHost(cli, backup, directoryOf(options));
  }
  if (options.texts('files') !== undefined) {
    options.allowOnly(
      ['files', 'to', 'force', 'storage', 'volume', 'partition', 'yes'],
      'restore --files',
      'stillpoint restore BACKUP --files PATH --to DIR',
    );
    return restoreFiles(cli, backup, options);
  }
  options.refuse(
    ['force', 'partition'],
    'restore without --files',
    'stillpoint restore BACKUP --files PATH --to DIR',
  );
  if (options.text('toDevice') !== undefined) return restoreDevice(cli, backup, options);
  return changing(cli, async ({ agent, view, interruption }) => {
    // Before the question: what it asks about may not be the newest.
    await findBackup(cli, agent.backups, backup);
    const storage = options.text('storage');
    const plan = await agent.planRestore({ backup, storage, ...requestOf(options) });
    const { terminal } = cli;
    if (terminal.json) terminal.object({ plan });
    else printPlan((...parts) => terminal.out(...parts), plan);
    await confirm(cli, options, interruption.signal);
    const created = agent.createRestore(plan);
    view.name(created.id, created.machineName);
    if (interruption.signal.aborted) agent.parts.journal.requestCancel(created.id);
    const job = await agent.run(created);
    view.end();
    const code = exitCodeOfJob(job);
    if (code !== 0) terminal.error(new JobFailure(job), plan.machine.name);
    if (terminal.json)
      terminal.object({ job: { id: job.id, state: job.state, error: job.error }, machine: plan.machine });
    else if (code === 0)
      printRestored((...parts) => terminal.out(...parts), plan, job, agent.parts.journal.steps(job.id));
    return code;
  });
};

/** @throws CliError USAGE */
function directoryOf(options: Options): string {
  const to = options.text('to');
  if (to !== undefined) return to;
  throw new CliError('USAGE', 'a backup of a host is restored as files', 'give the directory: --to DIR');
}

function requestOf(options: Options): RestoreRequest {
  const start = options.text('start');
  const to = options.text('to');
  return {
    as: options.text('as'),
    inPlace: options.flag('inPlace'),
    // The job may go on in a process that stands somewhere else.
    to: to === undefined ? undefined : resolve(to),
    start: start === 'resume' || start === 'boot' || start === 'none' ? start : undefined,
    volumes: options.texts('volume')?.flatMap((targets) => targets.split(',')),
    map: parseMap(options.texts('map') ?? []),
    networks: parseNetworks(options.texts('network') ?? []),
    instant: options.flag('instant'),
    safetyCopy: options.flag('safetyCopy'),
  };
}

/** Places of images, `vda=/path`. @throws CliError USAGE */
function parseMap(texts: readonly string[]): Readonly<Record<string, string>> {
  return Object.fromEntries(
    texts.map((text): [string, string] => {
      const [, target, path] = /^([^=]+)=(.+)$/.exec(text) ?? [];
      if (target === undefined || path === undefined)
        throw new CliError('USAGE', `"${text}" does not say where a volume goes`, '--map vda=/srv/vda.qcow2');
      return [target, resolve(path)];
    }),
  );
}

/** Places of network cards, `OLD=NEW`. @throws CliError USAGE */
function parseNetworks(texts: readonly string[]): Readonly<Record<string, string>> {
  return Object.fromEntries(
    texts.map((text): [string, string] => {
      const [, from, to] = /^([^=]+)=([^/=]+)$/.exec(text) ?? [];
      if (from === undefined || to === undefined)
        throw new CliError(
          'USAGE',
          `"${text}" does not say what is connected where`,
          '--network br0=default',
        );
      return [from, to];
    }),
  );
}
