import { dirname, resolve } from 'node:path';
import type { Agent } from '../../agent/agent.ts';
import { type DevicePlan, planDeviceRestore, restoreToDevice } from '../../agent/restore/deviceRestore.ts';
import { formatBytes } from '../../common/units.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import { findBackup } from '../backups.ts';
import type { Cli } from '../cli.ts';
import { confirm } from '../confirm.ts';
import { CliError } from '../errors.ts';
import type { ExitCode } from '../exitCodes.ts';
import type { Options } from '../options.ts';
import { styled, type Text } from '../output.ts';
import { changing } from '../session.ts';
import { clearAbandoned } from './storageMount.ts';

/** `stillpoint restore BACKUP --volume TARGET --to-device DEVICE`: plan, question, work. */
export async function restoreDevice(cli: Cli, reference: string, options: Options): Promise<ExitCode> {
  const usage = 'stillpoint restore BACKUP --volume TARGET --to-device DEVICE';
  options.allowOnly(['storage', 'volume', 'toDevice', 'yes'], 'restore --to-device', usage);
  const device = resolve(options.text('toDevice') ?? '');
  const [target, ...others] = options.texts('volume') ?? [];
  if (others.length > 0 || target?.includes(',') === true)
    throw new CliError('USAGE', 'one volume goes onto one device', usage);
  return changing(cli, async ({ agent, interruption: { signal } }) => {
    await clearAbandoned(cli, agent);
    await findBackup(cli, agent.backups, reference);
    const found = await agent.findBackup(reference, options.text('storage'));
    // Also while the operator thinks about the plan.
    return agent.looking.whileKept(found, async (entry) => {
      const plan = await planDeviceRestore(agent.parts.hypervisor, entry, { target, device, signal });
      if (cli.terminal.json) cli.terminal.object({ plan });
      else printPlan((...parts) => cli.terminal.out(...parts), plan);
      await confirm(cli, options, signal);
      return restorePlanned(cli, agent, entry, plan, signal);
    });
  });
}

async function restorePlanned(
  { terminal }: Cli,
  agent: Agent,
  entry: BackupEntry,
  plan: DevicePlan,
  signal: AbortSignal,
): Promise<ExitCode> {
  const { hypervisor, config } = agent.parts;
  try {
    await restoreToDevice(hypervisor, agent.storage(entry.storage), entry, plan, {
      signal,
      runDirectory: dirname(config.agent.socket),
      onProgress: (what, doneBytes) =>
        terminal.live([
          [`${what} ${plan.device.path}: ${formatBytes(doneBytes)} of ${formatBytes(plan.sizeBytes)}`],
        ]),
    });
  } catch (error) {
    if (!signal.aborted) throw error;
    terminal.live([]);
    terminal.error(error, plan.device.path);
    return 130;
  }
  terminal.live([]);
  if (terminal.json) terminal.object({ restored: plan.target, device: plan.device.path });
  else
    terminal.out(
      styled('green', 'restored '),
      styled('bold', plan.device.path),
      ` is ${plan.target} of ${plan.backup.machine} as of ${plan.backup.pointInTime}, read back and compared`,
    );
  return 0;
}

function printPlan(out: (...parts: readonly Text[]) => void, plan: DevicePlan): void {
  const { backup, target, device, sizeBytes } = plan;
  out(styled('bold', 'Restore'), ` of backup ${backup.id} from storage ${backup.storage}`);
  out(`  ${target} of ${backup.machine} as of ${backup.pointInTime}, ${formatBytes(sizeBytes)}`);
  out('  onto ', styled('bold', device.path), `, ${formatBytes(device.sizeBytes)}`);
  for (const remark of plan.remarks) out(styled('yellow', '  device: '), remark);
}
