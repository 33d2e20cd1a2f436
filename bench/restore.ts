/**
 * npm run bench -- restore [ROUNDS]: how long a restore takes, from the command to its end, with everything on the
 * disk. Flows in turn:
 *   ours            stillpoint restore --to: digests compared, copy read back, fsync
 *   convert         qemu-img convert of the same stored file, sync
 *   virtnbdrestore  of virtnbdbackup's backup of the same machine, as Debian has it, sync
 * Each begins with an empty page cache. Once with backups and target on the file system of the laboratory, and once
 * (sharingBlocks) with both on XFS, where ours shares the blocks of the backup.
 * And from the command to the machine's first instruction, as a new machine:
 *   instant         stillpoint restore --instant --start boot
 *   byHand          qemu-img convert, virsh define, virsh start
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LibvirtHypervisor } from '../agent/hypervisor/libvirt/libvirtHypervisor.ts';
import { type Lab, type LabAgent, type LabMachine, startLab } from '../test/lab/lab.ts';
import { type Flow, measureInTurn, roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';
import { extentBytes, mib, volumeMiB, writeImage } from './largeImage.ts';
import { summarize } from './statistics.ts';

const timeoutMs = 600_000;

/** Where backups are, and restored to. */
interface Place {
  /** Ours, by name and by path. */
  readonly storage: string;
  readonly backups: string;
  /** Those of virtnbdbackup. */
  readonly foreign: string;
  readonly target: string;
}

function placeIn(directory: string, storage: string): Place {
  const [backups, foreign, target] = [
    join(directory, 'bench-ours'),
    join(directory, 'bench-theirs'),
    join(directory, 'bench-target'),
  ];
  return { storage, backups, foreign, target };
}

async function shell(lab: Lab, text: string, ...args: readonly string[]): Promise<void> {
  await lab.run('sh', ['-c', `set -e\n${text}`, 'sh', ...args], { timeoutMs });
}

async function ours(agent: LabAgent, args: readonly string[]): Promise<void> {
  const { exitCode, stderr } = await agent.run([...args, '--quiet'], { timeoutMs });
  if (exitCode !== 0) throw new Error(`stillpoint ${args[0]} failed: ${stderr}`);
}

function flowsFor(
  lab: Lab,
  agent: LabAgent,
  files: Place & { readonly stored: string },
): Readonly<Record<string, Flow>> {
  const { storage, stored, foreign, target } = files;
  // A restore on a bad day finds nothing of its backup in the page cache.
  const emptyCache = (): Promise<void> => shell(lab, 'sync; echo 3 >/proc/sys/vm/drop_caches');
  // In the laboratory, which has mounts of its own.
  const cleanUp = (): Promise<void> => shell(lab, 'find "$1" -mindepth 1 -delete', target);
  return {
    ours: {
      run: () => ours(agent, ['restore', 'sp-bench@latest', '--storage', storage, '--to', target, '--yes']),
      prepare: emptyCache,
      cleanUp,
    },
    convert: {
      run: () => shell(lab, 'qemu-img convert -O qcow2 "$1" "$2/vda"; sync "$2/vda"', stored, target),
      prepare: emptyCache,
      cleanUp,
    },
    virtnbdrestore: {
      run: () => shell(lab, 'virtnbdrestore -n -i "$1" -o "$2" >/dev/null 2>&1; sync', foreign, target),
      prepare: emptyCache,
      cleanUp,
    },
  };
}

/** Milliseconds from a command to the first "resumed" or "started" of the machine that it makes. */
async function untilRunning(
  hypervisor: LibvirtHypervisor,
  name: string,
  command: () => Promise<void>,
): Promise<number> {
  let runsSinceMs: number | undefined;
  const stop = await hypervisor.subscribe((event) => {
    if (event.kind === 'lifecycle' && event.event === 'resumed') runsSinceMs ??= event.monotonicMs;
  });
  const beginMs = Number(process.hrtime.bigint()) / 1e6;
  await command();
  await stop();
  if (runsSinceMs === undefined) throw new Error(`${name} was never seen to run`);
  return runsSinceMs - beginMs;
}

async function measureInstant(
  lab: Lab,
  hypervisor: LibvirtHypervisor,
  agent: LabAgent,
  stored: string,
  rounds: number,
): Promise<object> {
  const name = 'sp-copy';
  const times = { instant: [] as number[], byHand: [] as number[] };
  const image = join(lab.imagesDir, 'by-hand.qcow2');
  const definition = join(lab.root, 'tmp', 'by-hand.xml');
  const original = await (await lab.findMachine('sp-bench')).xml('inactive');
  const uuid = '11111111-2222-4333-8444-555555555555';
  await writeFile(
    definition,
    original
      .replace(/<uuid>.*<\/uuid>/, `<uuid>${uuid}</uuid>`)
      .replace(/<name>.*<\/name>/, `<name>${name}</name>`)
      .replace(/<source file='[^']*sp-bench[^']*'/, `<source file='${image}'`),
  );
  const byHand = `qemu-img convert -O qcow2 "$1" "$2"; sync "$2"
virsh -q define "$3" >/dev/null; virsh -q start --paused "$4" >/dev/null; virsh -q resume "$4" >/dev/null`;
  for (let round = 0; round <= rounds; round += 1) {
    const instant = await untilRunning(hypervisor, name, () =>
      ours(agent, [
        'restore',
        'sp-bench@latest',
        '--storage',
        'plain',
        '--as',
        name,
        '--instant',
        '--start',
        'boot',
        '--yes',
      ]),
    );
    await (await lab.findMachine(name)).remove();
    const hand = await untilRunning(hypervisor, name, () =>
      shell(lab, byHand, stored, image, definition, name),
    );
    await (await lab.findMachine(name)).remove();
    process.stderr.write(
      `round ${round}/${rounds}: instant ${instant.toFixed(0)} ms, by hand ${hand.toFixed(0)} ms\n`,
    );
    if (round === 0) continue;
    times.instant.push(instant);
    times.byHand.push(hand);
  }
  return { untilRunningMs: { instant: summarize(times.instant), byHand: summarize(times.byHand) } };
}

/** Makes the machine and its backups in all places, which are those of the agent's storages. */
async function prepare(lab: Lab, agent: LabAgent, places: readonly Place[]): Promise<void> {
  const image = join(lab.imagesDir, 'sp-bench.qcow2');
  await writeImage(lab, image);
  const machine: LabMachine = await lab.createMachine({
    name: 'sp-bench',
    memoryMiB: 256,
    rate: 20,
    volumes: [{ target: 'vda', path: image }],
  });
  await machine.waitUntilWriting({ rounds: 20 });
  await ours(agent, ['backup', machine.name, '--mode', 'disk']);
  // virtnbdbackup refuses a machine that has checkpoints of others.
  await ours(agent, ['release', machine.name]);
  for (const { foreign } of places)
    await shell(lab, 'virtnbdbackup -d "$1" -l full -o "$2" >/dev/null 2>&1', machine.name, foreign);
  await machine.destroy();
}

async function storedIn(lab: Lab, directory: string): Promise<string> {
  const { stdout } = await lab.run('find', [directory, '-name', 'sp-bench-vda.qcow2.*Z']);
  const [stored = ''] = stdout.split('\n');
  return stored;
}

async function main(): Promise<void> {
  const rounds = roundsFrom('restore');
  await using lab = await startLab();
  await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
  const places = [
    placeIn(lab.root, 'plain'),
    // The backups, theirs, and what is restored.
    placeIn(await lab.loopFilesystem('xfs', 4 * volumeMiB), 'xfs'),
  ] as const;
  for (const { backups, target } of places) await lab.run('mkdir', [backups, target]);
  const agent = await lab.installAgent({
    command: await buildProduct(lab),
    storages: Object.fromEntries(
      places.map(({ storage, backups }) => [storage, { kind: 'directory', path: backups }]),
    ),
  });
  await prepare(lab, agent, places);
  const [plain, xfs] = places;
  const measured = async (place: Place): ReturnType<typeof measureInTurn> => {
    const stored = await storedIn(lab, place.backups);
    return measureInTurn(lab, flowsFor(lab, agent, { ...place, stored }), rounds);
  };
  const full = await measured(plain);
  const sharingBlocks = await measured(xfs);
  const instant = await measureInstant(lab, hypervisor, agent, await storedIn(lab, plain.backups), rounds);
  const about = { volumeMiB, dataMiB: volumeMiB / 2, extents: (volumeMiB * mib) / extentBytes / 2 };
  console.log(
    JSON.stringify(
      { bench: 'restore', rounds, ...(await toolVersions(lab)), about, ...full, sharingBlocks, ...instant },
      null,
      2,
    ),
  );
}

await main();
