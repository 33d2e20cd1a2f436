import type { DigestKind } from '../common/chunkSums.ts';
import type { FileDigest, HashOptions } from '../common/copy.ts';
import type { ErrorRecord } from '../common/errors.ts';
import type { Ownership } from '../common/files.ts';
import type { Hold } from '../common/hold.ts';
import type { Throttle } from '../common/throttle.ts';
import type { Change, Extent, VolumeSource } from '../common/volumeSource.ts';
import type { HostManifest } from './hostManifest.ts';
import type { Artifact, Manifest } from './manifest.ts';
import type { StorageBounds, StorageSpace } from './space.ts';
import type { DataVerification, Verification } from './verification.ts';

/**
 * The port to a place for backups. Rejections are `StorageError`, or the reason of an AbortSignal.
 */
export interface Storage extends StoredFiles {
  /** Its name in the configuration. */
  readonly name: string;
  /** `directory`: artifacts are files that stand at their paths. `repository`: streams, which must be copied out. */
  readonly kind: 'directory' | 'repository';
  /** Where it is, for people. */
  readonly location: string;

  /** Whether it can be used, and its space. Changes nothing; does not reject for a storage out of order. */
  check(): Promise<StorageCheck>;
  /**
   * How much room it has. What it holds itself is measured where it has a quota, and where that is asked for: then
   * every file or object of it is looked at.
   */
  space(options?: { readonly measured?: boolean | undefined }): Promise<StorageSpace>;
  /** What the configuration allows it. */
  readonly bounds: StorageBounds;
  /** True when a file from there can come in by a rename. */
  takesByRename(path: string): Promise<boolean>;
  /** True when it is on the file system of a file, whatever is mounted between: what loses one loses the other. */
  isOnDeviceOf(path: string): Promise<boolean>;
  /** True when an increment takes the room of what has changed; otherwise it takes that of a whole volume. */
  sharesBlocks(): Promise<boolean>;

  /**
   * Starts a backup, or takes up the one that the same job has begun before a crash. A job that may have
   * committed already asks `findCommitted` first.
   */
  begin(request: BeginRequest): Promise<BackupWriter>;
  /** The backup with this id if its commit has happened, otherwise `null`. */
  findCommitted(backupId: string): Promise<BackupEntry | null>;

  /** All backups, oldest first, damaged ones included. A damaged entry never hides the others. */
  list(filter?: { readonly machine?: string | undefined }): Promise<readonly BackupEntry[]>;
  /**
   * One backup by id, by the beginning of an id (8 characters or more), by `MACHINE@latest` (the newest that
   * is Active) or `MACHINE@T1`; MACHINE is a name or a UUID.
   *
   * Rejects with BACKUP_NOT_FOUND or BACKUP_AMBIGUOUS.
   */
  find(idOrName: string): Promise<BackupEntry>;
  /** Rejects with KEY_WRITE_ONLY where this host may store backups, and not read what is in them. */
  requireReading(): Promise<void>;
  /**
   * Checks a backup against its manifest: presence, sizes and the structure of its volumes, and with `data`
   * every byte. Damage is in the report; only a storage that does not answer rejects.
   */
  verify(entry: BackupEntry, options: VerifyOptions): Promise<VerifyReport>;
  /**
   * Removes a backup for good. Repeating it after a crash finishes the work.
   *
   * Rejects with BACKUP_PROTECTED and BACKUP_LOCKED, whatever the entry says.
   */
  delete(entry: BackupEntry): Promise<void>;
  /**
   * Protects a backup from being removed, by any means of ours; `null` takes that off.
   *
   * Rejects with BACKUP_NOT_FOUND.
   */
  setProtected(entry: BackupEntry, protection: Protection | null): Promise<void>;

  /**
   * Stores beside a backup what came of starting it in isolation, and a picture of its screen.
   *
   * Rejects with BACKUP_NOT_FOUND.
   */
  addVerification(
    entry: BackupEntry,
    verification: Omit<Verification, 'picture'>,
    pictureFile: string | null,
  ): Promise<Verification>;
  /**
   * Stores beside a backup how the last reading of every byte of it came out.
   *
   * Rejects with BACKUP_NOT_FOUND.
   */
  addDataVerification(entry: BackupEntry, verification: DataVerification): Promise<void>;

  /**
   * Runs what reads files of this storage by their paths. A storage that gives no sign of life for long counts as
   * unreachable: then the signal is aborted, and the call is not waited for.
   */
  reading<T>(what: string, read: (watch: ReadWatch) => Promise<T>): Promise<T>;

  /** Work that was begun and neither committed nor abandoned. */
  partials(): Promise<readonly PartialBackup[]>;
  /** Finishes deletions that a crash interrupted. Returns how many. */
  cleanUp(): Promise<number>;
  /**
   * Writes the backup of a host's definitions and returns its directory. Rejects with BACKUP_EXISTS.
   * @param files text of every file of the manifest, by file name
   */
  addHostBackup(manifest: HostManifest, files: ReadonlyMap<string, string>): Promise<string>;
  /** Every backup of a host, oldest first. */
  hostBackups(): Promise<readonly HostBackupEntry[]>;
  /** A file of the backup of a host, as it was stored. Rejects with BACKUP_NOT_FOUND. */
  hostFile(entry: Pick<HostBackupEntry, 'directory'>, file: string): Promise<Buffer>;
  /** Removes the backup of a host, for good. Rejects with BACKUP_NOT_FOUND, OBJECT_LOCKED. */
  deleteHostBackup(entry: Pick<HostBackupEntry, 'directory'>): Promise<void>;
}

/** The artifacts of backups, as who restores them reads them. */
export interface StoredFiles {
  /**
   * Writes an artifact to a new file, which is on the disk then: a volume as a standalone qcow2 file. What was read is
   * what was stored; whether the file reads back so is the caller's to prove.
   *
   * Rejects with BACKUP_DAMAGED.
   */
  copyOut(artifact: StoredFile, to: string, options: CopyOutOptions): Promise<CopiedOut>;
  /** Opens an artifact for reading; `null` where it is a file that can be opened by its path. */
  open(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<OpenArtifact | null>;
  /** A definition, compared with its digest. Rejects with BACKUP_DAMAGED. */
  readText(artifact: Pick<StoredFile, 'path' | 'sha256'>): Promise<string>;
  /** True when a file of the host holds what an artifact holds that is no volume. */
  isSameAs(artifact: Pick<StoredFile, 'sha256'>, hostFile: string): Promise<boolean>;
}

/** An artifact that is open. All that it hands out was compared with what was stored. */
export interface OpenArtifact {
  readonly source: VolumeSource;
  /** Every stretch in which it differs, or may differ, from another artifact of the same size. @param sha256 of that */
  changesSince(sha256: string): Promise<readonly Extent[]>;
}

/** An artifact of a backup. */
export interface StoredFile {
  /** Where the storage keeps files, the file; otherwise what people may call it. */
  readonly path: string;
  readonly sizeBytes: number;
  /** Its digest as the manifest has it; in a repository the id of the root of its stream. */
  readonly sha256: string;
}

export interface CopyOutOptions {
  /**
   * `volume`: what the guest saw, to be written as qcow2. `opaque volume`: a qcow2 image that is stored as it
   * stood because it is encrypted, or a container that the guest's disk is in, to be written as qcow2.
   */
  readonly as: 'volume' | 'opaque volume' | 'file';
  /** Whether what was written is to be read back at the same time, where the storage can do that. */
  readonly readBack?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Closed while nothing is to be read. */
  readonly hold?: Hold | undefined;
  /** What reading files is slowed down to, beside that. */
  readonly throttle?: Throttle | undefined;
  /** Counts bytes of the artifact. */
  readonly onProgress?: ((bytesDone: number) => void) | undefined;
}

/** What was written. */
export interface CopiedOut {
  /** Of the new file. */
  readonly sha256: string;
  readonly digest: DigestKind;
  /**
   * Whether what was written is what was read. `not compared`: the new file has to be hashed. `same` also where it
   * shares the blocks of what was read, so that nothing could have been written wrongly.
   */
  readonly written: 'same' | 'different' | 'not compared';
}

/** The backup of a host's definitions. */
export interface HostBackupEntry {
  readonly storage: string;
  /** Name of the host; of one whose manifest cannot be read, what its directory is named after. */
  readonly host: string;
  readonly directory: string;
  readonly pointInTime: string;
  readonly manifest: HostManifest | null;
  /** Why it cannot be used as it is. */
  readonly problem: string | null;
  /** As of a backup. */
  readonly lockedUntil?: string | null | undefined;
}

/** What a reader of a storage's files is told, and tells. */
export interface ReadWatch {
  readonly signal: AbortSignal;
  /** Something was read, or done with it. */
  alive(): void;
}

export interface MachineIdentity {
  readonly name: string;
  readonly uuid: string;
}

export interface BeginRequest {
  readonly jobId: string;
  /** What the backup is going to be called. */
  readonly backupId: string;
  readonly machine: MachineIdentity;
  /**
   * A backup of this id that was given up may be written once more; refused unless told. For who still has all that it
   * is made of, such as another storage.
   */
  readonly afterFence?: boolean | undefined;
  /** Closed while nothing is to be read for this backup and nothing sent; what is under way then ends. */
  readonly hold?: Hold | undefined;
}

/**
 * A backup on its way into a storage. Every operation may be repeated after a crash: a file has its final
 * name only when it is complete and on the disk.
 */
export interface BackupWriter {
  /** The directory in which the files gather; `null` where no files are kept. */
  readonly directory: string | null;
  /** What it reads of a volume begins and ends at multiples of this, or at the volume's end. */
  readonly readUnitBytes: number;

  /** True when this file is complete. */
  has(fileName: string): Promise<boolean>;
  /**
   * Moves a file in. libvirt's marks are taken off it, so nothing may use it any more.
   *
   * Rejects with CROSS_FILE_SYSTEM, FILE_MISSING (neither `from` nor the file is there), BACKUP_EXISTS (both).
   */
  addByRename(from: string, fileName: string, options?: AddOptions): Promise<FileDigest>;
  /** Copies a file in, by reflink where that works. */
  addByCopy(from: string, fileName: string, options?: AddOptions): Promise<FileDigest>;
  /**
   * Writes a volume in as a standalone qcow2 file, in one pass. Without `ownership` it is ours alone (0600).
   * Its digest is by chunks. `onProgress` counts the bytes of that file, zeros that take no space included; so does the bandwidth.
   *
   * Rejects with the source's own error when it is the source that fails, and with an Error when the source's
   * extents are not exactly its size, or that is no multiple of 512 bytes.
   */
  addVolume(source: VolumeSource, fileName: string, options?: AddOptions): Promise<FileDigest>;
  /**
   * Writes a volume in as what an earlier backup of this storage holds of it, with what has changed since: a
   * standalone qcow2 file, too, for which only `changes` are read and written where the file system can share blocks.
   * `onProgress` counts the bytes that are read from the source; so does the bandwidth.
   *
   * Rejects with PARENT_UNUSABLE when the earlier one is missing, damaged, of another size, or of a layout that is
   * not ours to change: then it is `addVolume` that can. Otherwise as `addVolume`.
   */
  addIncrement(
    source: VolumeSource,
    increment: Increment,
    fileName: string,
    options?: AddOptions,
  ): Promise<FileDigest>;
  /** Makes what was added outlive this process, so that `commit` of another one can do the rest. */
  flush(options?: { readonly signal?: AbortSignal | undefined }): Promise<void>;
  /**
   * Makes it a backup. Every file of the manifest must be there with its size.
   *
   * Rejects with BACKUP_EXISTS when the machine has another backup of the same T1.
   *
   * @param onProgress is called while there is much to do
   */
  commit(manifest: Manifest, onProgress?: () => void): Promise<BackupEntry>;
  /**
   * Ends this attempt and leaves what was gathered to one that is begun with `afterFence`. Nobody has to wait for it
   * any more.
   */
  suspend(): Promise<void>;
  /** Gives it up and removes what was gathered. */
  abandon(): Promise<void>;
}

/** What makes a volume out of an earlier backup. */
export interface Increment {
  /** Id of the earlier backup, and which of its volumes. */
  readonly parent: { readonly backupId: string; readonly target: string };
  /** Every stretch in which the volume may differ from it, in order. Zeros are changes. */
  readonly changes: readonly Change[];
}

/** A file whose digest is by chunks (every volume) gets the list of them beside it, see `sumsFileOf`. */
export interface AddOptions extends HashOptions {
  /** Owner, group and mode in the storage; those of the source file unless told. */
  readonly ownership?: Ownership | undefined;
}

/** A backup, or what is left of one. */
export interface BackupEntry {
  readonly storage: string;
  /** Absolute path of its directory; in a repository, what people may call it. */
  readonly directory: string;
  /** `null` when the manifest cannot be read. */
  readonly id: string | null;
  /** From the manifest; without one the name is told by the directory. */
  readonly machine: { readonly name: string; readonly uuid: string | null };
  /** T1, RFC 3339. */
  readonly pointInTime: string;
  /** `Killed`: it cannot be restored as it is; `problem` says why. */
  readonly state: 'Active' | 'Killed';
  readonly problem: string | null;
  /** It may not be removed. */
  readonly protected: boolean;
  /** Why it is protected, if somebody said so. */
  readonly protectedReason: string | null;
  /** The storage keeps it until then, and nobody can remove it before, RFC 3339; `null`: anybody can who may. */
  readonly lockedUntil?: string | null | undefined;
  /** What came of starting it in isolation, the last time. */
  readonly verified?: Verification | null | undefined;
  /** When every byte of it was read and compared, the last time. */
  readonly dataVerified?: DataVerification | null | undefined;
  readonly manifest: Manifest | null;
}

/** What keeps a backup from being removed. */
export interface Protection {
  /** In the operator's words, at most `protectionReasonLengthMax` characters. */
  readonly reason: string | null;
}

export interface PartialBackup {
  readonly jobId: string;
  readonly directory: string;
  /** Last change, RFC 3339. */
  readonly changedAt: string;
}

export interface VerifyOptions {
  /** Read every byte and compare digests. */
  readonly data: boolean;
  /**
   * What was compared by calls before this one, in whatever terms the storage has; this one adds to it. Backups share
   * data in some storages, and it needs to be read once only.
   */
  readonly compared?: Set<string> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Closed while nothing is to be read. */
  readonly hold?: Hold | undefined;
  /** What reading files is slowed down to, beside that. */
  readonly throttle?: Throttle | undefined;
  readonly onProgress?:
    | ((done: { readonly bytesDone: number; readonly bytesTotal: number }) => void)
    | undefined;
}

/** `structure`: the file is there, but is not the image that the manifest describes. */
export type FileVerdict = 'ok' | 'missing' | 'size' | 'digest' | 'structure' | 'unreadable';

export interface FileReport {
  readonly file: string;
  readonly kind: Artifact['kind'] | 'manifest';
  readonly verdict: FileVerdict;
  readonly detail: string | null;
}

export interface VerifyReport {
  readonly id: string | null;
  readonly ok: boolean;
  /** Every byte was read and compared. */
  readonly data: boolean;
  readonly files: readonly FileReport[];
}

export interface StorageCheck {
  readonly name: string;
  readonly location: string;
  readonly ok: boolean;
  readonly freeBytes: number | null;
  readonly problem: ErrorRecord | null;
}
