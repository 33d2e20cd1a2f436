/** Names of objects (docs/FORMAT.md, "Objects in the store"). */
export const prefixes = {
  config: 'config/',
  keys: 'keys/',
  packs: 'packs/',
  indexes: 'indexes/',
  manifests: 'manifests/',
  deletions: 'deletions/',
  sessions: 'sessions/',
  marks: 'marks/',
  verdicts: 'verdicts/',
  quarantine: 'quarantine/',
  protections: 'protections/',
  verifications: 'verifications/',
  readings: 'readings/',
  hosts: 'hosts/',
  damaged: 'damaged/',
} as const;

export function packName(id: Buffer): string {
  const text = id.toString('hex');
  return `${prefixes.packs}${text.slice(0, 2)}/${text}`;
}

/** The id of a pack, or `null` when nothing of ours is called so. */
export function packIdOf(name: string): Buffer | null {
  const match = /^packs\/([0-9a-f]{2})\/(\1[0-9a-f]{62})$/.exec(name);
  return match?.[2] === undefined ? null : Buffer.from(match[2], 'hex');
}

export function indexName(id: Buffer): string {
  return `${prefixes.indexes}${id.toString('hex')}`;
}

export function indexIdOf(name: string): Buffer | null {
  return hashOf(name, prefixes.indexes);
}

export function quarantineName(packId: Buffer): string {
  return `${prefixes.quarantine}${packId.toString('hex')}`;
}

export function quarantinedPackOf(name: string): Buffer | null {
  return hashOf(name, prefixes.quarantine);
}

function hashOf(name: string, prefix: string): Buffer | null {
  const text = name.slice(prefix.length);
  return name.startsWith(prefix) && /^[0-9a-f]{64}$/.test(text) ? Buffer.from(text, 'hex') : null;
}

/** One attempt to write a backup. Another one than the first is made only after all before it were given up. */
export interface Attempt {
  readonly backupId: string;
  /** From 1 on. */
  readonly attempt: number;
}

export function manifestName(backupId: string, attempt = 1): string {
  return `${prefixes.manifests}${attemptName(backupId, attempt)}`;
}

export function deletionName(backupId: string): string {
  return `${prefixes.deletions}${backupId}`;
}

export function sessionName(backupId: string, attempt = 1): string {
  return `${prefixes.sessions}${attemptName(backupId, attempt)}`;
}

function attemptName(backupId: string, attempt: number): string {
  return attempt === 1 ? backupId : `${backupId}.${attempt}`;
}

/** The attempt that a manifest, a fence or a session is about, or `null` when nothing of ours is called so. */
export function attemptOf(name: string, prefix: 'manifests/' | 'sessions/'): Attempt | null {
  const match = /^(.+?)(?:\.([1-9][0-9]{0,3}))?$/.exec(name);
  const backupId = backupIdOf(match?.[1] ?? '', prefix);
  const attempt = Number(match?.[2] ?? 1);
  if (backupId === null || (attempt === 1 && match?.[2] !== undefined)) return null;
  return { backupId, attempt };
}

/** The backup that an object is about, or `null` when nothing of ours is called so. */
export function backupIdOf(name: string, prefix: string): string | null {
  const id = name.slice(prefix.length);
  return name.startsWith(prefix) && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id) ? id : null;
}

/** The backup of a host. */
export function hostName(id: string): string {
  return `${prefixes.hosts}${id}`;
}

/**
 * Where a repair puts a damaged object; what else was found under the same name comes after it. No other object is
 * called so: those of later attempts end in a dot and a number. @param number from 1 on
 */
export function damagedName(name: string, number: number): string {
  return number === 1 ? `${prefixes.damaged}${name}` : `${prefixes.damaged}${name}-${number}`;
}

/** What is said of backups after their commit, by numbered records. */
export type NumberedKind = 'protections' | 'verifications' | 'readings';

/** One of them. */
export interface NumberedRecord {
  readonly backupId: string;
  readonly number: number;
}

/** @param number from 1 on */
export function recordName(kind: NumberedKind, backupId: string, number: number): string {
  return `${prefixes[kind]}${backupId}/${String(number).padStart(8, '0')}`;
}

/** What a record is about, or `null` when nothing of ours is called so. */
export function numberedRecordOf(name: string, kind: NumberedKind): NumberedRecord | null {
  const match = /^(.+)\/([0-9]{8})$/.exec(name);
  const backupId = backupIdOf(match?.[1] ?? '', prefixes[kind]);
  return backupId === null ? null : { backupId, number: Number(match?.[2]) };
}

/** What collections leave is numbered. */
export function numberedName(kind: 'marks' | 'verdicts' | 'swept', number: number): string {
  return `${kind}/${String(number).padStart(8, '0')}`;
}

/** The number of a collection, or `null` when nothing of ours is called so. */
export function numberOf(name: string, prefix: string): number | null {
  const text = name.slice(prefix.length);
  return name.startsWith(prefix) && /^[0-9]{8}$/.test(text) ? Number(text) : null;
}
