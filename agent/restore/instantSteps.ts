import { chmod, chown, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { BandwidthLimit } from '../../common/bandwidth.ts';
import { hashFile } from '../../common/copy.ts';
import { messageOf } from '../../common/errors.ts';
import { fsyncFile } from '../../common/files.ts';
import { createOverlay, readImageInfo, readImageMap } from '../../common/qemuImage.ts';
import type { ProcessUser } from '../hypervisor/capabilitiesXml.ts';
import { DomainXml } from '../hypervisor/domainXml.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { NbdVolume } from '../../nbd/volume.ts';
import type { Step, StepContext } from '../jobs/step.ts';
import { firstGap, headerState } from '../merge/completeness.ts';
import { flushVolumes } from '../merge/flush.ts';
import { streamVolumes } from '../merge/stream.ts';
import { answerMs } from '../snapshot/imageExport.ts';
import { RestoreError } from './errors.ts';
import { pullPlan, servedVolumes } from './instantPlan.ts';
import type { RestoredVolume, RestoreFacts, RestorePlan } from './plan.ts';
import { endServer, ensureServed } from './served.ts';

type Context = StepContext<RestoreFacts>;

/** Makes sure that every artifact is served; tells whether a server had to be started. */
export async function ensureAllServed(hypervisor: Hypervisor, plan: RestorePlan): Promise<boolean> {
  const user = await hypervisor.defaultUser();
  let isAnyNew = false;
  for (const volume of servedVolumes(plan)) isAnyNew = (await serve(volume, user)) || isAnyNew;
  return isAnyNew;
}

async function serve(volume: RestoredVolume, user: ProcessUser): Promise<boolean> {
  const { target, artifact, format, served } = volume;
  if (served === null) return false;
  const { socket, repository } = served;
  return ensureServed({ target, artifact: artifact.path, format, socket, repository }, user);
}

/** Ends the servers of an instant restore, and takes the directory of their sockets away. */
export async function endServing(plan: RestorePlan): Promise<void> {
  for (const { served } of servedVolumes(plan)) await endServer(served.socket);
  const directory = servedVolumes(plan)[0]?.served.socket;
  if (directory !== undefined) await rm(dirname(directory), { recursive: true, force: true });
}

/** Makes the empty overlay that stands on a served artifact, where another restore makes a checked copy. */
export async function stageOverlay(hypervisor: Hypervisor, volume: RestoredVolume): Promise<void> {
  const { served, staged, owner, artifact, format } = volume;
  if (served === null) return;
  await serve(volume, await hypervisor.defaultUser());
  await rm(staged, { force: true });
  const isImage = served.repository === null && format === 'qcow2';
  const qcow2Layout = isImage ? (await readImageInfo(artifact.path, format, { inUse: true })).layout : [];
  await createOverlay(staged, { path: served.url, format: 'raw' }, served.virtualSizeBytes, qcow2Layout);
  await chown(staged, owner.uid, owner.gid);
  await chmod(staged, owner.mode & 0o777);
  await fsyncFile(staged);
}

/** What an instant restore does after its machine has started. */
export function instantSteps(hypervisor: Hypervisor): readonly Step<RestoreFacts>[] {
  return [
    {
      name: 'pull',
      state: 'restored',
      cancellable: false,
      // QEMU goes on by itself, on a server that outlives us; the next process finds its block job.
      canBeLeft: () => true,
      act: async (context) => {
        const { plan, pullDeadlineMs } = context.facts;
        await streamVolumes(hypervisor, pullPlan(plan), {
          includeSharedBase: true,
          limit: new BandwidthLimit(),
          deadlineMs: pullDeadlineMs,
          onProgress: (doneBytes, totalBytes) => context.report({ doneBytes, totalBytes }),
        });
      },
    },
    {
      name: 'flush',
      state: 'restored',
      cancellable: false,
      act: async (context) => {
        const { plan } = context.facts;
        await flushVolumes(hypervisor, pullPlan(plan), (vcpusHeld) => context.commit({ vcpusHeld }));
        await requireLocal(plan, { inUse: true });
        context.learn({ local: true });
      },
    },
    {
      name: 'check',
      state: 'restored',
      cancellable: false,
      act: async (context) => {
        await checkArtifacts(context);
        await giveBackErrorPolicies(hypervisor, context.facts.plan);
        await endServing(context.facts.plan);
      },
    },
  ];
}

/**
 * Fsyncs the images and proves that they hold all that the backup holds.
 * @throws RestoreError NOT_LOCAL
 */
export async function requireLocal(plan: RestorePlan, { inUse }: { readonly inUse: boolean }): Promise<void> {
  const merge = pullPlan(plan);
  for (const volume of servedVolumes(plan)) {
    await fsyncFile(volume.file);
    const planned = merge.volumes.find(({ target }) => target === volume.target);
    const header =
      planned === undefined ? 'other' : await headerState(planned, { inUse, includeSharedBase: true });
    const gap = header === 'merged' ? await missingByte(volume, inUse) : undefined;
    if (header === 'merged' && gap === undefined) continue;
    throw new RestoreError(
      'NOT_LOCAL',
      gap === undefined
        ? `${volume.file} still stands on the backup (${header})`
        : `${volume.file} does not hold what the backup holds at byte ${gap}`,
      { hint: 'the machine runs on; stillpoint job retry <id>', retryable: true },
    );
  }
}

/** First byte that an artifact holds and the image does not. */
async function missingByte(volume: RestoredVolume, inUse: boolean): Promise<number | undefined> {
  const held = await readImageMap(volume.file, 'qcow2', { inUse });
  return firstGap(
    await storedData(volume),
    held.filter(({ present, depth }) => present && depth === 0),
  );
}

/** Every stretch of a volume that its artifact holds; of a repository its server, which is still there, is asked. */
async function storedData({
  artifact,
  format,
  served,
  target,
}: RestoredVolume): Promise<readonly { readonly start: number; readonly length: number }[]> {
  if (served === null || served.repository === null) {
    const map = await readImageMap(artifact.path, format, { inUse: true });
    return map.filter(({ data }) => data);
  }
  await using volume = await NbdVolume.open({ socketPath: served.socket, exportName: target, answerMs });
  const extents = await volume.extents();
  return extents.flatMap(({ zero, offsetBytes, lengthBytes }) =>
    zero ? [] : [{ start: offsetBytes, length: lengthBytes }],
  );
}

/** The machine was started before every byte was compared with its digest: that is done now. */
async function checkArtifacts(context: Context): Promise<void> {
  const { plan } = context.facts;
  const totalBytes = plan.volumes.reduce((sum, { artifact }) => sum + artifact.sizeBytes, 0);
  let before = 0;
  for (const { artifact, served } of plan.volumes) {
    // Of a repository nothing is handed out that was not compared.
    if (served?.repository != null) continue;
    const onProgress = (bytesDone: number): void =>
      context.report({ doneBytes: before + bytesDone, totalBytes });
    try {
      const { sha256 } = await hashFile(artifact.path, { onProgress, digest: 'chunks' });
      if (sha256 !== artifact.sha256) context.learn({ damage: `the digest of ${artifact.path} differs` });
    } catch (error) {
      context.learn({ damage: `${artifact.path} cannot be read again: ${messageOf(error)}` });
    }
    before += artifact.sizeBytes;
  }
}

/** The next start of the machine uses its own ways with errors again; the present run keeps ours. */
async function giveBackErrorPolicies(hypervisor: Hypervisor, plan: RestorePlan): Promise<void> {
  const machine = (await hypervisor.machines()).find(({ uuid }) => uuid === plan.machine.uuid);
  if (machine?.persistent !== true) return;
  const definition = DomainXml.parse(await hypervisor.definition(machine.uuid, 'persistent-secure'));
  for (const { target, served } of servedVolumes(plan)) {
    const present = definition.volumes.find((volume) => volume.target === target)?.errorPolicies;
    if (present?.write === 'stop' && present.read === 'stop')
      definition.setErrorPolicies(target, served.errorPolicies);
  }
  await hypervisor.define(definition.toString());
}
