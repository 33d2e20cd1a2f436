import type { Agent } from '../agent/agent.ts';
import { type BackupRequest, groupOf } from '../agent/backupRequests.ts';
import { errorRecord } from '../common/errors.ts';
import { formatBytes } from '../common/units.ts';
import { shortId } from './backups.ts';
import type { Cli } from './cli.ts';
import { combinedExitCode, type ExitCode, exitCodeOf } from './exitCodes.ts';
import { styled } from './output.ts';

type Planned = Awaited<ReturnType<Agent['planBackup']>>;

/** Says what these backups would do; nothing is done. */
export async function printDryRun(
  cli: Cli,
  agent: Agent,
  requests: readonly BackupRequest[],
  isTogether: boolean,
): Promise<ExitCode> {
  const codes: ExitCode[] = [];
  const group = isTogether ? await groupOf(agent.parts.hypervisor, requests) : undefined;
  for (const request of requests) {
    try {
      const planned = await agent.planBackup({ ...request, group });
      if (cli.terminal.json) cli.terminal.object(plannedJson(planned));
      else printPlan(cli, planned);
      codes.push(0);
    } catch (error) {
      cli.terminal.error(error, request.machine);
      codes.push(exitCodeOf(errorRecord(error).code));
    }
  }
  return combinedExitCode(codes);
}

function plannedJson({ plan, storages, storageChoices, warnings }: Planned): unknown {
  const { machine, mode, modeReason, volumes } = plan;
  return {
    machine,
    mode,
    modeReason,
    ...(plan.mode === 'save' || plan.mode === 'live'
      ? {
          memoryBytes: plan.memoryBytes,
          stateFile: plan.stateFile,
          stateOnRamDisk: plan.stateOnRamDisk,
        }
      : {}),
    volumes: volumes.map((volume) => ({
      target: volume.target,
      image: volume.image,
      virtualSizeBytes: volume.virtualSizeBytes,
      allocatedBytes: volume.allocatedBytes,
      ...('reads' in volume ? { reads: volume.reads } : {}),
    })),
    storages,
    storageChoices,
    warnings,
  };
}

function printPlan(cli: Cli, { plan, storages, warnings }: Planned): void {
  const { terminal } = cli;
  terminal.out(
    'would back up ',
    styled('bold', plan.machine.name),
    ` in mode ${plan.mode} (${plan.modeReason}) into ${storages.join(', ')}`,
  );
  if (plan.mode === 'save' || plan.mode === 'live')
    terminal.out(`  memory: up to ${formatBytes(plan.memoryBytes)} through ${plan.stateFile}`);
  for (const volume of plan.volumes) {
    terminal.out(
      `  ${volume.target}: ${volume.image}, ${formatBytes(volume.allocatedBytes)} of ${formatBytes(volume.virtualSizeBytes)}`,
    );
    if (!('reads' in volume)) continue;
    for (const [storage, read] of Object.entries(volume.reads))
      terminal.out(
        `    ${storage}: ${'parent' in read ? `increment of ${shortId(read.parent)}` : `read in full: ${read.reason}`}`,
      );
  }
  for (const warning of warnings) terminal.warning(`${plan.machine.name}: ${warning}`);
}
