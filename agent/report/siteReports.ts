import { availableParallelism, release, totalmem } from 'node:os';
import * as z from 'zod';
import { version } from '../../common/version.ts';
import type { HostInfo, MachineSummary } from '../hypervisor/hypervisor.ts';
import type { StorageState } from '../storageStates.ts';
import { reportedError, type Telling } from './alerts.ts';
import type { ToldSubject } from './outbox.ts';
import type { ReportBody } from './report.ts';

/** The host, where it is not as the controller knows it. @param told the host as the outbox has it */
export function hostTellings(told: ReadonlyMap<string, ToldSubject>, info: HostInfo): readonly Telling[] {
  const value = {
    hostName: info.hostName,
    agentVersion: version,
    libvirtVersion: info.libvirtVersion,
    qemuVersion: info.qemuVersion,
    kernelRelease: release(),
    processors: availableParallelism(),
    memoryBytes: BigInt(totalmem()),
  };
  return changed(told, '', { $case: 'host', value });
}

const seenMachineSchema = z.object({ name: z.string(), present: z.boolean() });

/** Machines that are not as the controller knows them. @param machines all that there are */
export function machineTellings(
  told: ReadonlyMap<string, ToldSubject>,
  machines: readonly MachineSummary[],
): readonly Telling[] {
  const present = new Set(machines.map(({ uuid }) => uuid));
  const tellings = machines.flatMap(({ uuid, name, status, persistent, autostart }) => {
    const { state, reason: stateReason } = status;
    const value = { uuid, name, present: true, state, stateReason, persistent, autostart };
    return changed(told, uuid, { $case: 'machine', value });
  });
  for (const [uuid, { seen }] of told) {
    if (present.has(uuid)) continue;
    const { name } = seenMachineSchema.parse(JSON.parse(seen));
    const nothing = { state: '', stateReason: '', persistent: false, autostart: false };
    tellings.push(
      ...changed(told, uuid, { $case: 'machine', value: { uuid, name, present: false, ...nothing } }),
    );
  }
  return tellings;
}

/** A storage, where it is not as the controller knows it. */
export function storageTellings(
  told: ReadonlyMap<string, ToldSubject>,
  storage: StorageState,
): readonly Telling[] {
  const { name, kind, location, ok: usable, problem, warning } = storage;
  const value = {
    name,
    kind,
    location,
    usable,
    problem: problem === null ? undefined : reportedError(problem),
    capacityBytes: countOf(storage.capacityBytes),
    freeBytes: countOf(storage.freeBytes),
    storedBytes: countOf(storage.storedBytes),
    quotaBytes: countOf(storage.quotaBytes),
    warning: warning ?? '',
  };
  return changed(told, name, { $case: 'storage', value });
}

function countOf(bytes: number | null): bigint | undefined {
  return bytes === null ? undefined : BigInt(bytes);
}

function changed(
  told: ReadonlyMap<string, ToldSubject>,
  subject: string,
  body: ReportBody,
): readonly Telling[] {
  const seen = JSON.stringify(body.value, (_, one: unknown) => (typeof one === 'bigint' ? Number(one) : one));
  const before = told.get(subject);
  if (before?.isSure === true && before.seen === seen) return [];
  return [{ report: { subject, weight: 'state', body }, told: { kind: body.$case, subject, seen } }];
}
