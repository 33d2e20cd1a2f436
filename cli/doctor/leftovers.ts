import type { Agent } from '../../agent/agent.ts';
import { ourBitmaps } from '../../agent/release.ts';
import { errorRecord } from '../../common/errors.ts';
import { QemuImageError } from '../../common/qemuImage.ts';
import { holdOf } from '../jobView.ts';
import { quote } from '../restoreByHand.ts';
import { type Check, ok, warn } from './check.ts';

/** Unfinished jobs, and what belongs to no job that is known. */
export async function checkLeftovers(agent: Agent): Promise<readonly Check[]> {
  const { journal } = agent.parts;
  const checks: Check[] = [];
  for (const job of journal.holding()) {
    const hold = holdOf(journal, job);
    const text = `job ${job.id} (${job.kind} of ${job.machineName}, ${job.state})`;
    if (hold === 'orphaned')
      checks.push(warn('unfinished', `the process of ${text} died in the middle`, 'stillpoint agent --once'));
    if (hold === 'parked')
      checks.push(warn('unfinished', `${text} was left with work to do`, `stillpoint job show ${job.id}`));
  }
  const known = new Set(journal.holding().map(({ id }) => id));
  checks.push(
    ...(await partialDirectories(agent, known)),
    ...(await workDirectories(agent, known)),
    ...(await forgottenBitmaps(agent)),
    ...(await abandonedLooks(agent)),
  );
  // Where libvirt does not answer, more than one look says so.
  const told = new Set<string>();
  const once = checks.filter(({ message }) => !told.has(message) && told.add(message));
  return once.length === 0 ? [ok('leftovers', 'no unfinished job, no forgotten directory or bitmap')] : once;
}

async function partialDirectories(agent: Agent, known: ReadonlySet<string>): Promise<readonly Check[]> {
  const checks: Check[] = [];
  for (const storage of agent.parts.storages.values()) {
    if (!(await storage.check()).ok) continue;
    for (const { jobId, directory, changedAt } of await storage.partials()) {
      if (known.has(jobId)) continue;
      const message = `${directory} belongs to no unfinished job (last change ${changedAt})`;
      const hint =
        storage.kind === 'directory'
          ? `look into it, then remove it: rm -r ${quote(directory)}`
          : `stillpoint storage gc ${quote(storage.name)} ends it if nobody goes on with it; --fence gives it up, with all backups that others have begun there`;
      checks.push(warn('leftovers', message, hint));
    }
  }
  return checks;
}

/** A frozen image in a forgotten directory may be what a machine stands on. */
async function workDirectories(agent: Agent, known: ReadonlySet<string>): Promise<readonly Check[]> {
  try {
    const found = await agent.workDirectories();
    return found
      .filter(({ jobId }) => !known.has(jobId))
      .map(({ directory }) => {
        const hint = `is an image in it in use? virsh domblklist MACHINE; qemu-img info -U --backing-chain IMAGE; only if not: rm -r ${quote(directory)}`;
        return warn('leftovers', `${directory} belongs to no unfinished job`, hint);
      });
  } catch (error) {
    return [
      warn(
        'leftovers',
        `machines could not be looked at: ${errorRecord(error).message}`,
        'see libvirt above',
      ),
    ];
  }
}

/** Bitmaps whose checkpoint libvirt does not know any more cost the guest's writes a little, and help nobody. */
async function forgottenBitmaps(agent: Agent): Promise<readonly Check[]> {
  const { hypervisor } = agent.parts;
  const checks: Check[] = [];
  try {
    for (const machine of await hypervisor.machines()) {
      try {
        for (const { image, name } of await ourBitmaps(hypervisor, machine))
          checks.push(
            warn(
              'leftovers',
              `${image} of ${machine.name} holds bitmap ${name} of a checkpoint that is gone`,
              `when the machine is off: stillpoint release ${quote(machine.name)}`,
            ),
          );
      } catch (error) {
        // An image that cannot be read is told by the check of its machine.
        if (!(error instanceof QemuImageError)) throw error;
      }
    }
  } catch (error) {
    const { message } = errorRecord(error);
    checks.push(warn('leftovers', `machines could not be looked at: ${message}`, 'see libvirt above'));
  }
  return checks;
}

/** Servers and mounts go on without the command that was killed. */
async function abandonedLooks(agent: Agent): Promise<readonly Check[]> {
  const looks = await agent.looking.looks.abandoned();
  return looks.map(({ directory, backup, owner }) =>
    directory === null
      ? warn(
          'leftovers',
          `process ${owner.pid} died while it read backup ${backup.id}; what served it may still be there`,
          `the next command of its kind takes them away: stillpoint files ${backup.id}`,
        )
      : warn(
          'leftovers',
          `${directory} shows backup ${backup.id} of ${backup.machine}, and the process of that mount (${owner.pid}) died`,
          `stillpoint storage unmount ${quote(directory)}`,
        ),
  );
}
