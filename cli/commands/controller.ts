import { resolve } from 'node:path';
import type { Gap, StoredReport } from '../../controller/reportStore.ts';
import { CertificateAuthority } from '../../controller/ca.ts';
import { openStub, reportJson } from '../../controller/stub.ts';
import type { Cli, RunVerb } from '../cli.ts';
import { CliError } from '../errors.ts';
import { commandLog } from '../session.ts';

const defaultListen = '127.0.0.1:9774';
const signals = ['SIGINT', 'SIGTERM'] as const;

/** `stillpoint controller --stub --dir DIR [--listen HOST:PORT]`: receives reports until a signal. */
export const controller: RunVerb = async (cli, _, options) => {
  const usage = 'stillpoint controller --stub --dir DIR';
  if (!options.flag('stub'))
    throw new CliError('NOT_AVAILABLE', 'there is no controller in this version but for --stub', usage);
  const directory = options.text('dir');
  if (directory === undefined) throw new CliError('USAGE', 'where it keeps reports is not named', usage);
  const { terminal } = cli;
  using ca = options.flag('tls') ? await CertificateAuthority.open(resolve(directory)) : undefined;
  await using stub = await openStub({
    directory: resolve(directory),
    listen: options.text('listen') ?? defaultListen,
    ca,
    log: commandLog(cli),
    onReport: (report) => tellReport(cli, report),
    onGap: (gap) => tellGap(cli, gap),
    onFault: (host, error) => terminal.error(error, host ?? undefined),
  });
  terminal.remark(
    ca === undefined
      ? `listening on ${stub.address} without certificates: this is for tests only`
      : `listening on ${stub.address} for hosts that have joined; one joins with: stillpoint controller token --ca ${directory}`,
  );
  await new Promise<void>((resolved) => {
    for (const signal of signals) process.once(signal, () => resolved());
  });
  return 0;
};

function tellReport({ terminal }: Cli, stored: StoredReport): void {
  if (terminal.json) terminal.object(reportJson(stored));
  else terminal.out(`${stored.host} ${stored.report.sequence} ${stored.report.body?.$case ?? 'unknown'}`);
}

function tellGap({ terminal }: Cli, gap: Gap): void {
  if (terminal.json) terminal.object({ gap });
  else
    terminal.warning(
      `${gap.host}: what its outbox ${gap.generation} had after ${gap.afterSequence} is lost (${gap.reason})`,
    );
}
