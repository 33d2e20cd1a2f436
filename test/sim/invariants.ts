import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { Journal } from '../../agent/jobs/journal.ts';
import { isErrno } from '../../common/errors.ts';
import type { BackupEntry, Storage } from '../../storage/storage.ts';
import { readGuestSequences } from './images.ts';
import { readSaveImage } from './saveImage.ts';
import type { Site } from './site.ts';

/** What a scenario promises beyond what always holds. */
export interface Promised {
  /** `either` where the crash itself may have taken the machine down outside of any job's care. */
  readonly machine: 'running' | 'suspended' | 'off' | 'either';
  /** The guest must not have been booted anew. */
  readonly memoryKept: boolean;
  readonly autostart: boolean;
  /** Persistent definition of the machine before the job. */
  readonly definition: string;
  /** Files below the site's image directory that are not of the machine `m`. */
  readonly otherImages?: readonly string[] | undefined;
}

/** Compares a site, after recovery, with what Stillpoint promises at every instant; returns what is wrong. */
export async function brokenPromises(site: Site, promised: Promised): Promise<string[]> {
  const problems: string[] = [];
  const check = (isFine: boolean, problem: () => string): void => {
    if (!isFine) problems.push(problem());
  };
  using journal = new Journal(site.journalPath, { readOnly: true });
  for (const job of journal.holding()) {
    problems.push(
      `job ${job.kind} holds the machine: ${job.state} ${job.error?.code ?? ''} ${job.error?.message ?? ''}`,
    );
  }
  for (const job of journal.list()) {
    check(job.finishedAtMs !== null, () => `job ${job.kind} has not ended: ${job.state}`);
    check(job.error?.code !== 'INTERNAL_ERROR', () => `an error that nobody foresaw: ${job.error?.message}`);
  }
  problems.push(...(await machineProblems(site, promised)));
  problems.push(...(await strayFiles(site, promised.otherImages ?? [])));
  for (const entry of await listed(site)) problems.push(...(await backupProblems(site, entry)));
  return problems;
}

async function machineProblems(site: Site, promised: Promised): Promise<string[]> {
  const problems: string[] = [];
  const check = (isFine: boolean, problem: string): void => {
    if (!isFine) problems.push(problem);
  };
  const machine = site.world.machine('m');
  const { state, reason } = machine.status;
  const wanted = { running: 'running', suspended: 'paused', off: 'shut-off', either: state }[
    promised.machine
  ];
  check(state === wanted, `machine is ${state} (${reason}) instead of ${promised.machine}`);
  check(machine.autostart === promised.autostart, `autostart is ${machine.autostart}`);
  check(machine.persistent === promised.definition, 'the persistent definition changed');
  check(machine.operation === undefined, 'libvirt is still at work on the machine');
  check(machine.instance?.guest?.frozen !== true, 'the guest is frozen');
  const live = machine.instance === undefined ? undefined : DomainXml.parse(machine.instance.definition);
  for (const target of site.targets) {
    const wantedNumbers = site.expected(target, site.lastSequence);
    const stored = await numbersIn(() => readGuestSequences(site.image(target)));
    check(
      stored === String(wantedNumbers),
      `${target} on disk: ${stored} instead of ${wantedNumbers.join()}`,
    );
    if (machine.instance === undefined) continue;
    const seen = await numbersIn(() => site.world.readVolume('m', target));
    check(
      seen === String(wantedNumbers),
      `${target} as the guest sees it: ${seen} instead of ${wantedNumbers.join()}`,
    );
    check(live?.volume(target).path === site.image(target), `${target} is at ${live?.volume(target).path}`);
    const below = machine.instance.chains.get(target)?.length;
    check(below === 0, `${target} stands on ${below} other images`);
    check(machine.instance.blockJobs.size === 0, 'a block job goes on');
  }
  const sequence = machine.instance?.sequence;
  if (promised.memoryKept)
    check(sequence === site.lastSequence, `memory is at ${sequence} instead of ${site.lastSequence}`);
  return problems;
}

/** Files that no backup and no machine accounts for. */
async function strayFiles(site: Site, others: readonly string[]): Promise<string[]> {
  const problems: string[] = [];
  const images = site.targets.map((target) => `m-${target}.qcow2`);
  const wanted = new Set([...images, ...others]);
  for (const name of await readdir(join(site.directory, 'images'), { recursive: true })) {
    // The copy of a restore, and what a restore has replaced, are judged by themselves.
    if (!wanted.delete(name) && !name.startsWith('n-') && !isSafetyCopy(name))
      problems.push(`stray file beside the images: ${name}`);
  }
  problems.push(...[...wanted].map((name) => `missing: ${name}`));
  for (const target of site.targets) {
    const { nlink } = await stat(site.image(target));
    if (nlink !== 1) problems.push(`${target} has ${nlink} names`);
  }
  for (const name of await readdir(site.ramDisk)) problems.push(`stray on the RAM disk: ${name}`);
  for (const name of await readdir(join(site.directory, 'boot')))
    problems.push(`stray of a verification: ${name}`);
  for (const { name } of await site.world.connect().machines())
    if (name.startsWith('stillpoint-verify-')) problems.push(`a machine is left: ${name}`);
  for (const name of await readdir(site.runDirectory, { recursive: true }))
    if (name !== 'snapshotting') problems.push(`stray in the run directory: ${name}`);
  // In a vault these are the sessions that are open.
  for (const [name, storage] of site.openStorages())
    for (const partial of await storage.partials()) problems.push(`partial in ${name}: ${partial.jobId}`);
  for (const [name, path] of Object.entries(site.storagePaths)) {
    for (const machine of await readdir(path)) {
      for (const file of await readdir(join(path, machine)))
        if (file.startsWith('.')) problems.push(`stray in ${name}: ${file}`);
    }
  }
  return problems;
}

/** Something that a restore has replaced, under the name that it keeps. */
export function isSafetyCopy(name: string): boolean {
  return /^[^/]+\.replaced-\d{8}T\d{6}\.\d{3}Z$/.test(name);
}

/** Every backup that the storages of a site list. */
export async function listed(site: Site): Promise<BackupEntry[]> {
  const storages = [...site.openStorages().values()];
  return (await Promise.all(storages.map((storage) => storage.list()))).flat();
}

/** A listed backup must verify byte for byte, and disks and memory must be of one instant. */
async function backupProblems(site: Site, entry: BackupEntry): Promise<string[]> {
  const { manifest } = entry;
  if (manifest === null || entry.state !== 'Active')
    return [`backup ${entry.directory} is ${entry.state}: ${entry.problem}`];
  const storage = storageOf(site, entry);
  const report = await storage.verify(entry, { data: true });
  const problems = report.ok
    ? []
    : [`backup in ${entry.storage} does not verify: ${JSON.stringify(report.files)}`];
  return withFiles(site, entry, async (files) => {
    const found = new Map<string, string>();
    for (const { target, file } of manifest.volumes)
      found.set(target, await numbersIn(() => readGuestSequences(join(files.directory, file))));
    const atPoint = await sequenceAtPointOf(files).catch(() => Number.NaN);
    for (const [target, numbers] of found) {
      if (numbers !== String(site.expected(target, atPoint)))
        problems.push(`backup in ${entry.storage}: ${target} has ${numbers}, T1 is at ${atPoint}`);
    }
    return problems;
  });
}

function storageOf(site: Site, { storage: name }: BackupEntry): Storage {
  const storage = site.openStorages().get(name);
  if (storage === undefined) throw new Error(`the site has no storage ${name}`);
  return storage;
}

/** Reads a backup as one whose artifacts are files of its directory: what a repository holds is copied out. */
export async function withFiles<T>(
  site: Site,
  entry: BackupEntry,
  read: (entry: BackupEntry) => Promise<T>,
): Promise<T> {
  const storage = storageOf(site, entry);
  const { manifest } = entry;
  if (storage.kind === 'directory' || manifest === null) return read(entry);
  const directory = await mkdtemp(join(site.directory, 'copied-'));
  try {
    for (const { file, sha256, storedBytes: sizeBytes } of manifest.volumes)
      await storage.copyOut({ path: file, sizeBytes, sha256 }, join(directory, file), { as: 'volume' });
    const files = [...(manifest.memory === undefined ? [] : [manifest.memory]), ...manifest.extras];
    for (const { file, sha256, sizeBytes } of files)
      await storage.copyOut({ path: file, sizeBytes, sha256 }, join(directory, file), { as: 'file' });
    return await read({ ...entry, directory });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** The number that the guest had written last at T1, of a backup in a directory: what its memory says, or else the highest on its volumes. */
export async function sequenceAtPointOf({ directory, manifest }: BackupEntry): Promise<number> {
  if (manifest === null) return -1;
  const file = manifest.memory?.file;
  if (file !== undefined) return (await readSaveImage(join(directory, file))).memory?.sequence ?? -1;
  const found = manifest.volumes.map((volume) => readGuestSequences(join(directory, volume.file)));
  return Math.max(-1, ...(await Promise.all(found)).flat());
}

async function numbersIn(read: () => Promise<number[]>): Promise<string> {
  try {
    return String(await read());
  } catch (error) {
    if (isErrno(error, 'EMFILE')) throw error;
    return `unreadable (${error instanceof Error ? error.message.slice(0, 200) : String(error)})`;
  }
}
