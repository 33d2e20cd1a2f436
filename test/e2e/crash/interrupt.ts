import { eventually } from '../../lab/lab.ts';
import type { CrashStage } from './stage.ts';

/*
 * Moments inside libvirt's and QEMU's long operations, which no point of a job can name: each function returns
 * as soon as one can be seen from outside.
 */

/** libvirt writes the memory state: its file is there, and QEMU too. */
export async function inSave(stage: CrashStage): Promise<void> {
  await eventually(
    async () => {
      const { stdout } = await stage.lab.run('find', [stage.lab.ramDir, '-name', '*.state', '-size', '+1M']);
      return stdout !== '';
    },
    { timeoutMs: 60_000, intervalMs: 1 },
  );
}

/** libvirt brings the machine back: a new QEMU is there, and its vCPUs stand still. */
export async function inRestore(stage: CrashStage): Promise<void> {
  await eventually(async () => (await stage.lab.qemuPid(stage.machine.name)) !== undefined, {
    timeoutMs: 60_000,
    intervalMs: 1,
  });
}

/** The merge of the first volume has begun to copy and is far from its end. */
export async function inMerge(stage: CrashStage): Promise<void> {
  await eventually(
    async () => {
      const info = await stage.lab.virsh('blockjob', stage.machine.uuid, 'vda', '--info', '--raw');
      const current = Number(/cur=(\d+)/.exec(info)?.[1] ?? 0);
      return current > 0;
    },
    { timeoutMs: 60_000, intervalMs: 50 },
  );
}
