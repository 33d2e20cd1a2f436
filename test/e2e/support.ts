import { createHash } from 'node:crypto';
import { readdir, readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import type { Test } from 'tap';
import * as z from 'zod';
import type { TestSwitch } from '../../common/testSwitches.ts';
import { type Manifest, parseManifest } from '../../storage/manifest.ts';
import type { AgentSetup, BackgroundRun, Lab, LabAgent, LabMachine, WriterStatus } from '../lab/lab.ts';
import type { AgentRequest } from './agentRunner.ts';

const withNode = path.resolve(import.meta.dirname, '../../scripts/with-node');
const runner = path.resolve(import.meta.dirname, 'agentRunner.ts');

const errorSchema = z.object({
  code: z.string(),
  message: z.string(),
  hint: z.string().optional(),
  retryable: z.boolean(),
});
const jobSchema = z.object({
  id: z.string(),
  kind: z.string(),
  machineName: z.string(),
  state: z.string(),
  holdsMachine: z.boolean(),
  record: z.unknown(),
});
const answerSchema = z.object({
  error: errorSchema.nullish(),
  job: jobSchema.optional(),
  steps: z.array(z.object({ name: z.string(), status: z.string() })).optional(),
  result: z.unknown().optional(),
  warnings: z.array(z.string()),
});

/** What one request came to; `log` is everything that the process wrote to stderr. */
export type Answer = z.infer<typeof answerSchema> & { readonly stdout: string; readonly log: string };

export interface RequestOptions {
  readonly switches?: readonly TestSwitch[] | undefined;
  /** Kills the agent there, e.g. `backup/before:swap`; the answer is then `killed`. */
  readonly crashAt?: string | undefined;
}

/** An agent of the laboratory, each request in a process of its own. */
export class TestAgent {
  readonly setup: LabAgent;
  readonly #lab: Lab;

  private constructor(lab: Lab, setup: LabAgent) {
    this.#lab = lab;
    this.setup = setup;
  }

  static async install(lab: Lab, setup: AgentSetup = {}): Promise<TestAgent> {
    return new TestAgent(lab, await lab.installAgent(setup));
  }

  start(request: AgentRequest, options: RequestOptions = {}): BackgroundRun {
    const env = {
      STILLPOINT_TEST_SWITCHES: options.switches?.join(',') ?? '',
      ...(options.crashAt === undefined ? {} : { STILLPOINT_TEST_CRASH_AT: options.crashAt }),
    };
    const input = JSON.stringify(request);
    const run = this.#lab.background(withNode, ['node', runner, this.setup.configFile], {
      env,
      input,
      timeoutMs: 180_000,
    });
    return this.setup.secrets.over(run, [request.kind]);
  }

  async ask(request: AgentRequest, options: RequestOptions = {}): Promise<Answer> {
    return answerOf(this.start(request, options));
  }

  backup(
    machine: LabMachine,
    options: RequestOptions & {
      readonly mode?: 'auto' | 'save' | 'live' | 'disk' | 'offline';
      readonly storages?: readonly string[];
      readonly reread?: boolean;
    } = {},
  ): Promise<Answer> {
    const { mode, storages, reread, ...rest } = options;
    return this.ask(
      {
        kind: 'backup',
        machine: machine.uuid,
        ...(mode === undefined ? {} : { mode }),
        ...(storages === undefined ? {} : { storages: [...storages] }),
        ...(reread === undefined ? {} : { reread }),
      },
      rest,
    );
  }

  restore(
    backup: string,
    how: Omit<Extract<AgentRequest, { kind: 'restore' }>, 'kind' | 'backup'>,
  ): Promise<Answer> {
    return this.ask({ kind: 'restore', backup, ...how });
  }

  async jobs(): Promise<readonly z.infer<typeof jobSchema>[]> {
    return z.array(jobSchema).parse((await this.ask({ kind: 'jobs' })).result);
  }

  /** The newest backup of a machine in the directory storage `local`. */
  async latest(name: string, storageDir = this.setup.storageDir): Promise<StoredBackup> {
    const machineDir = path.join(storageDir, encodeURIComponent(name));
    const newest = (await readdir(this.#lab.outside(machineDir)))
      .filter((entry) => !entry.startsWith('.'))
      .toSorted()
      .at(-1);
    if (newest === undefined) throw new Error(`${machineDir} holds no backup`);
    const directory = path.join(machineDir, newest);
    const manifest = parseManifest(
      await readFile(this.#lab.outside(path.join(directory, 'manifest.json')), 'utf8'),
    );
    return { directory, manifest };
  }
}

/** A backup as it stands in a directory storage. `directory` is a path inside the laboratory. */
export interface StoredBackup {
  readonly directory: string;
  readonly manifest: Manifest;
}

/** The file of a volume in a backup. */
export function artifact(backup: StoredBackup, target: string): string {
  const volume = backup.manifest.volumes.find((each) => each.target === target);
  if (volume === undefined) throw new Error(`the backup has no volume ${target}`);
  return path.join(backup.directory, volume.file);
}

/** What stands in the storage is, byte for byte, what an image of a machine at rest holds. */
export async function requireSameContent(
  t: Test,
  lab: Lab,
  backup: StoredBackup,
  machine: LabMachine,
): Promise<void> {
  for (const { target, path: image, format } of machine.volumes) {
    const file = artifact(backup, target);
    const args = ['compare', '-U', '-f', 'qcow2', '-F', format, file, image];
    const compared = await lab.run('qemu-img', args, { check: false });
    t.equal(compared.exitCode, 0, `${target}: ${compared.stdout}${compared.stderr}`);
    const checked = await lab.run('qemu-img', ['check', '-f', 'qcow2', file], { check: false });
    t.equal(checked.exitCode, 0, `${target} is in order: ${checked.stdout}${checked.stderr}`);
    const info = await lab.run('qemu-img', ['info', '-f', 'qcow2', file]);
    t.notMatch(info.stdout, 'backing file', `${target} stands alone`);
  }
}

/** The answer of a request that was started in the background. */
export async function answerOf(run: BackgroundRun): Promise<Answer> {
  const { exitCode, signal, stdout, stderr } = await run.done;
  if (signal === 'SIGKILL' || exitCode === 137) return { warnings: [], stdout, log: `killed\n${stderr}` };
  try {
    return { ...answerSchema.parse(JSON.parse(stdout)), stdout, log: stderr };
  } catch (error) {
    throw new Error(`the agent gave no answer (exit code ${exitCode}): ${stdout}\n${stderr}`, {
      cause: error,
    });
  }
}

/** Asserts that a request's job came to its end. */
export function requireFinished(t: Test, answer: Answer): void {
  if (answer.job?.state !== 'finished')
    t.comment(`${answer.error?.code} ${answer.error?.message}\n${answer.log}`);
  t.equal(answer.job?.state, 'finished', 'the job finishes');
  t.notOk(answer.error, 'without an error');
  t.equal(answer.job?.holdsMachine, false, 'and lets the machine go');
}

/** Asserts that a request was refused or failed with this code, and tells the operator what to do. */
export function requireError(t: Test, answer: Answer, code: string): void {
  if (answer.error?.code !== code) t.comment(`${answer.error?.message}\n${answer.log}`);
  t.equal(answer.error?.code, code, answer.error?.message ?? 'no error');
  t.ok((answer.error?.hint ?? '').length > 3, `hint: ${answer.error?.hint ?? 'none'}`);
}

/** How a machine is, as far as its owner can see; what a backup must leave as it was. */
export interface OwnersView {
  readonly state: string;
  readonly autostart: boolean;
  readonly persistentXml: string;
  readonly images: readonly {
    readonly path: string;
    readonly owner: string;
    readonly chain: readonly string[];
  }[];
}

const chainSchema = z.array(z.object({ filename: z.string() }));

export async function ownersView(lab: Lab, machine: LabMachine): Promise<OwnersView> {
  const images = [];
  for (const { path: file, format } of machine.volumes) {
    const owner = (await lab.run('stat', ['-L', '-c', '%u:%g %a', file])).stdout;
    const { stdout } = await lab.run('qemu-img', [
      'info',
      '-U',
      '--backing-chain',
      '--output=json',
      '-f',
      format,
      file,
    ]);
    images.push({
      path: file,
      owner,
      chain: chainSchema.parse(JSON.parse(stdout)).map(({ filename }) => filename),
    });
  }
  return {
    // The reason tells how it came to be running: `booted`, `restored`, `unpaused`.
    state: (await machine.state()).split(' (')[0] ?? '',
    autostart: /Autostart:\s+enable/.test(await lab.virsh('dominfo', machine.uuid)),
    persistentXml: await machine.xml('inactive'),
    images,
  };
}

/** A machine, and what must be the same after whatever is done to it. */
export interface Witness {
  readonly machine: LabMachine;
  readonly before: OwnersView;
  readonly writer: WriterStatus | undefined;
}

/** Takes down how a machine is; it has autostart from then on, so that losing it is seen. */
export async function witness(lab: Lab, machine: LabMachine): Promise<Witness> {
  const running = (await machine.state()).startsWith('running');
  if ((await lab.virsh('dominfo', machine.uuid)).includes('Persistent:     yes'))
    await lab.virsh('autostart', machine.uuid);
  const writer = running ? await machine.waitUntilWriting({ rounds: 20 }) : undefined;
  return { machine, before: await ownersView(lab, machine), writer };
}

export interface NothingLostOptions {
  /** A job of this machine is parked on purpose: it holds the machine and its files. */
  readonly parked?: boolean | undefined;
  /** The definition that the machine must have, if not the one from before. */
  readonly persistentXml?: string | undefined;
}

/**
 * Nothing is lost: the machine runs (or is as it was) with the memory it had, every block that it ever completed
 * is on its disks, and nothing of ours is left on it.
 */
export async function requireNothingLost(
  t: Test,
  lab: Lab,
  agent: TestAgent,
  { machine, before, writer }: Witness,
  options: NothingLostOptions = {},
): Promise<void> {
  const now = await ownersView(lab, machine);
  t.equal(now.state, before.state, `${machine.name} is ${before.state}`);
  t.equal(now.autostart, before.autostart, 'its autostart is as before');
  t.equal(
    now.persistentXml,
    options.persistentXml ?? before.persistentXml,
    'its persistent definition is as before',
  );
  if (options.parked === true) {
    const owners = (view: OwnersView): unknown => view.images.map(({ chain: _chain, ...image }) => image);
    t.same(owners(now), owners(before), 'its images have the same paths, owners, groups and modes');
  } else {
    t.same(now.images, before.images, 'its images have the same paths, chains, owners, groups and modes');
  }
  if (writer !== undefined) await requireWriterWhole(t, machine, writer);
  for (const { target } of machine.volumes) {
    t.equal(await hasBlockJob(lab, machine, target), false, `no block job works on ${target}`);
  }
  const holders = (await agent.jobs()).filter((job) => job.holdsMachine && job.machineName === machine.name);
  t.equal(
    holders.length,
    options.parked === true ? 1 : 0,
    options.parked === true ? 'one job is parked' : 'no job holds it',
  );
  if (options.parked !== true) t.same(await leftovers(lab, machine), [], 'no work file is left');
}

/** True while a block job works on a volume. */
export async function hasBlockJob(lab: Lab, machine: LabMachine, target: string): Promise<boolean> {
  const { stdout, stderr } = await lab.run('virsh', ['blockjob', machine.uuid, target, '--info'], {
    check: false,
  });
  // virsh prints the progress on stderr.
  return `${stdout}${stderr}`.includes('%');
}

/** The guest has the memory that it had, goes on writing, and finds all it ever wrote. */
export async function requireWriterWhole(t: Test, machine: LabMachine, since: WriterStatus): Promise<void> {
  const now = since.paused
    ? await machine.writerStatus()
    : await machine.waitUntilWriting({ after: since.sequence });
  t.equal(now.runId, since.runId, 'the guest has not booted');
  t.equal(now.writeErrors, 0, 'no write failed in the guest');
  const verified = await machine.verifyFromInside();
  t.match(
    verified,
    { runId: since.runId, missing: 0, torn: 0, newer: 0, readErrors: 0 },
    'the guest finds all that it wrote',
  );
  t.ok(verified.checked > 0);
}

/** Files of ours that stand where a machine's images and memory states are. */
export async function leftovers(lab: Lab, machine: LabMachine): Promise<readonly string[]> {
  const directories = [
    ...new Set([lab.ramDir, ...machine.volumes.map((volume) => path.dirname(volume.path))]),
  ];
  const left: string[] = [];
  for (const directory of directories) {
    const names = [
      '-name',
      '.stillpoint',
      '-o',
      '-name',
      '*.state',
      '-o',
      '-name',
      '*.overlay',
      '-o',
      '-name',
      '*.frozen',
    ];
    const { stdout } = await lab.run('find', [directory, '-mindepth', '1', '(', ...names, ')']);
    left.push(...stdout.split('\n').filter((line) => line !== ''));
  }
  return left;
}

export interface Block {
  readonly runId: string;
  readonly sequence: number;
  readonly wallMs: number;
  readonly sha256: string;
}

const blockBytes = 4096;

/** The block that a sequence number stands in, whatever it holds now; the ring as test/lab/guest/writer.c lays it. */
export async function blockOf(lab: Lab, image: string, sequence: number, ringBlocks: number): Promise<Block> {
  const copy = path.join(lab.root, 'tmp', `block-${sequence}-${Math.random()}`);
  // Up to QEMU 9.0 `count` counts what is skipped too.
  const skip = 256 + (sequence % ringBlocks);
  try {
    await lab.run('qemu-img', [
      'dd',
      '-U',
      '-f',
      'qcow2',
      '-O',
      'raw',
      `bs=${blockBytes}`,
      `skip=${skip}`,
      `count=${skip + 1}`,
      `if=${image}`,
      `of=${copy}`,
    ]);
    const bytes = (await readFile(copy)).subarray(0, blockBytes);
    return {
      runId: bytes.readBigUInt64LE(8).toString(16).padStart(16, '0'),
      sequence: Number(bytes.readBigUInt64LE(16)),
      wallMs: Number(bytes.readBigUInt64LE(32)) / 1e6,
      sha256: createHash('sha256').update(bytes).digest('hex'),
    };
  } finally {
    await rm(copy, { force: true });
  }
}

/** SHA-256 of a file in the laboratory. */
export async function digestOf(lab: Lab, file: string): Promise<string> {
  return (await lab.run('sha256sum', [file])).stdout.split(' ')[0] ?? '';
}
