import * as z from 'zod';
import { BackupChange, type BackupReport } from '../../proto/generated/stillpoint/v1/report.ts';
import type { BackupEntry } from '../../storage/storage.ts';
import type { Telling } from './alerts.ts';
import type { ToldSubject } from './outbox.ts';

const kind = 'backup';
const verificationSchema = z.object({ at: z.string(), ok: z.boolean() }).nullable();

/** What is remembered of a copy of a backup that the controller knows. */
const seenSchema = z.object({
  id: z.string(),
  machine: z.object({ name: z.string(), uuid: z.string() }),
  pointInTime: z.string(),
  state: z.enum(['Active', 'Killed']),
  problem: z.string(),
  protected: z.boolean(),
  read: verificationSchema,
  booted: verificationSchema,
});

type Seen = z.output<typeof seenSchema>;
type Verification = z.output<typeof verificationSchema>;

/**
 * What has become of the backups of a storage since the controller was told of them. Whoever makes, copies, checks or
 * deletes one, in whatever process, on whatever host: it is seen in the storage, and nothing of it can get lost on the
 * way from there.
 * @param told the backups of all storages as the outbox has them
 * @param entries all that the storage holds
 */
export function backupTellings(
  told: ReadonlyMap<string, ToldSubject>,
  storage: string,
  entries: readonly BackupEntry[],
): readonly Telling[] {
  const present = new Set<string>();
  const tellings: Telling[] = [];
  for (const entry of entries) {
    const subject = subjectOf(storage, entry.directory);
    present.add(subject);
    const seen = seenOf(entry);
    const before = told.get(subject);
    const isKnown = before?.isSure === true;
    if (isKnown && before.seen === JSON.stringify(seen)) continue;
    const change = isKnown ? changeOf(parse(before.seen), seen) : BackupChange.BACKUP_CHANGE_MADE;
    tellings.push(telling(subject, reportOf(storage, entry.directory, seen, change, entry), seen));
  }
  for (const [subject, before] of told) {
    if (!subject.startsWith(subjectOf(storage, '')) || present.has(subject)) continue;
    const place = subject.slice(subjectOf(storage, '').length);
    const report = reportOf(storage, place, parse(before.seen), BackupChange.BACKUP_CHANGE_DELETED);
    tellings.push(telling(subject, report, null));
  }
  return tellings;
}

/** Names of storages hold no line break. */
function subjectOf(storage: string, place: string): string {
  return `${storage}\n${place}`;
}

function parse(seen: string): Seen {
  return seenSchema.parse(JSON.parse(seen));
}

function telling(subject: string, value: BackupReport, seen: Seen | null): Telling {
  return {
    report: { subject, weight: 'lasting', body: { $case: kind, value } },
    told: { kind, subject, seen: seen === null ? null : JSON.stringify(seen) },
  };
}

function seenOf(entry: BackupEntry): Seen {
  const { verified, dataVerified } = entry;
  return {
    id: entry.id ?? '',
    machine: { name: entry.machine.name, uuid: entry.machine.uuid ?? '' },
    pointInTime: entry.pointInTime,
    state: entry.state,
    problem: entry.problem ?? '',
    protected: entry.protected,
    read: dataVerified ? { at: dataVerified.at, ok: dataVerified.ok } : null,
    booted: verified ? { at: verified.at, ok: verified.ok } : null,
  };
}

function changeOf(before: Seen, now: Seen): BackupChange {
  const isChecked = (key: 'read' | 'booted'): boolean =>
    now[key] !== null && JSON.stringify(now[key]) !== JSON.stringify(before[key]);
  return isChecked('read') || isChecked('booted')
    ? BackupChange.BACKUP_CHANGE_VERIFIED
    : BackupChange.BACKUP_CHANGE_CHANGED;
}

function reportOf(
  storage: string,
  place: string,
  seen: Seen,
  change: BackupChange,
  entry?: BackupEntry,
): BackupReport {
  const manifest = entry?.manifest ?? null;
  return {
    storage,
    backupId: seen.id,
    place,
    change,
    machineName: seen.machine.name,
    machineUuid: seen.machine.uuid,
    pointInTime: seen.pointInTime,
    state: seen.state,
    problem: seen.problem,
    protected: seen.protected,
    mode: manifest?.mode ?? '',
    consistency: manifest?.consistency ?? '',
    referencedBytes: BigInt(manifest === null ? 0 : referencedBytes(manifest)),
    dataVerification: verification(seen.read),
    bootVerification: verification(seen.booted),
  };
}

function referencedBytes({ volumes, extras, memory }: NonNullable<BackupEntry['manifest']>): number {
  const sizes = [
    ...volumes.map(({ storedBytes }) => storedBytes),
    ...extras.map(({ sizeBytes }) => sizeBytes),
    memory?.sizeBytes ?? 0,
  ];
  return sizes.reduce((sum, size) => sum + size, 0);
}

function verification(result: Verification): BackupReport['dataVerification'] {
  return result === null ? undefined : { time: new Date(result.at), ok: result.ok };
}
