/**
 * npm run bench -- incremental [ROUNDS] [GIB,GIB…]: how long an increment of a running machine takes, from the command to its
 * end, when 64 MiB have changed since the backup before. The storages stand on XFS, which shares blocks. Flows in turn:
 *   ours-2GiB, ours-8GiB, ours-32GiB   stillpoint backup --mode disk, of volumes of these sizes, a quarter of each data,
 *                                      on a host where the service runs
 *   standalone-2GiB                    the same command with --standalone, as on a host without a service
 *   virtnbdbackup                      virtnbdbackup -l inc, as Debian has it, of a volume of 2 GiB like ours
 * Ours and virtnbdbackup have machines of their own: it refuses one that has checkpoints of others.
 */
import { join } from 'node:path';
import * as z from 'zod';
import { type Lab, type LabAgent, type LabMachine, startLab } from '../test/lab/lab.ts';
import { eventually } from '../test/lab/eventually.ts';
import { qemuIo } from '../test/lab/qemuIo.ts';
import { type Flow, measureInTurn, roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';

const shown = z.looseObject({
  volumes: z.array(z.looseObject({ read: z.string(), reason: z.string().optional() })),
  steps: z.array(z.object({ name: z.string(), durationMs: z.number() })),
});

const dataShare = 4;
const changedMiB = 64;
/** Half of what changes is one stretch, as a new file; the rest are pieces that lie apart, evenly over the volume. */
const pieceKiB = 256;
const timeoutMs = 600_000;
const serviceMs = 6 * 3_600_000;

interface Ours {
  readonly agent: LabAgent;
  readonly machine: LabMachine;
  readonly change: () => Promise<void>;
}

/** A machine with a volume of which every fourth MiB is data, so that there are many extents. */
async function createMachine(lab: Lab, name: string, sizeGiB: number): Promise<LabMachine> {
  const image = join(lab.imagesDir, `${name}.qcow2`);
  await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', image, `${sizeGiB}G`]);
  // The first 32 MiB are the writer's.
  const writes: string[] = [];
  for (let offset = 32; offset < sizeGiB * 1024; offset += dataShare)
    writes.push(`write -q -P ${(offset / dataShare) % 251 || 1} ${offset}M 1M`);
  await lab.run('qemu-io', ['-n', '-f', 'qcow2', image], { input: `${writes.join('\n')}\n`, timeoutMs });
  const machine = await lab.createMachine({ name, rate: 1, volumes: [{ target: 'vda', path: image }] });
  await machine.waitUntilWriting();
  return machine;
}

/** Writes what a round's increment will hold; the data differs from that of the round before. */
function changer(lab: Lab, machine: LabMachine, sizeGiB: number): () => Promise<void> {
  let round = 0;
  const halfKiB = (changedMiB * 1024) / 2;
  // The first 32 MiB are the writer's, the next 32 MiB the stretch.
  const stretch = 32 * 1024;
  const pieces = halfKiB / pieceKiB;
  const stepKiB = ((sizeGiB * 1024 - 64) * 1024) / pieces;
  const offsets = Array.from(
    { length: pieces },
    (_, index) => 64 * 1024 + Math.floor((index * stepKiB) / pieceKiB) * pieceKiB,
  );
  return async () => {
    round += 1;
    const pattern = (round % 250) + 1;
    await qemuIo(lab, machine, 'vda', [
      `write -q -P ${pattern} ${stretch}k ${halfKiB}k`,
      ...offsets.map((offset) => `write -q -P ${pattern} ${offset}k ${pieceKiB}k`),
    ]);
  };
}

/** A machine of ours, after its first, full backup. */
async function backedUp(lab: Lab, agent: LabAgent, sizeGiB: number): Promise<Ours> {
  const machine = await createMachine(lab, `sp-ours-${sizeGiB}`, sizeGiB);
  await backUp(agent, machine);
  return { agent, machine, change: changer(lab, machine, sizeGiB) };
}

async function backUp(agent: LabAgent, machine: LabMachine, ...more: readonly string[]): Promise<void> {
  const args = ['backup', machine.name, '--mode', 'disk', '--quiet', ...more];
  const { exitCode, stderr } = await agent.run(args, { timeoutMs });
  if (exitCode !== 0) throw new Error(`the backup failed: ${stderr}`);
}

function increment({ agent, machine, change }: Ours, ...more: readonly string[]): Flow {
  return {
    prepare: change,
    run: () => backUp(agent, machine, ...more),
    cleanUp: () => requireIncrement(agent, machine),
  };
}

/** What was measured was an increment of this size, and no full backup. */
async function requireIncrement(agent: LabAgent, machine: LabMachine): Promise<void> {
  const { stdout } = await agent.run(['show', `${machine.name}@latest`, '--json']);
  const { volumes, steps } = shown.parse(JSON.parse(stdout));
  const full = volumes.find(({ read }) => read !== 'increment');
  if (full !== undefined) throw new Error(`${machine.name} was read in full: ${full.reason}`);
  const told = steps.map(({ name, durationMs }) => `${name} ${Math.round(durationMs)} ms`).join(', ');
  process.stderr.write(`  ${machine.name}: ${told}\n`);
}

async function virtnbdbackupFor(lab: Lab, sizeGiB: number, target: string): Promise<Flow> {
  const machine = await createMachine(lab, 'sp-theirs', sizeGiB);
  const run = async (level: 'full' | 'inc'): Promise<void> => {
    const text =
      'virtnbdbackup -d "$1" -l "$2" -o "$3" >/dev/null 2>"$3.log" || { cat "$3.log" >&2; exit 1; }';
    await lab.run('sh', ['-c', text, 'sh', machine.name, level, target], { timeoutMs });
  };
  await run('full');
  return {
    prepare: changer(lab, machine, sizeGiB),
    run: () => run('inc'),
    // It goes on with its chain, as ours does.
    cleanUp: async () => {},
  };
}

/** Of the volumes, on the command line; the first is that which is compared with virtnbdbackup. */
function sizesFrom(text = process.argv[3] ?? '2,8,32'): readonly [number, ...number[]] {
  const [first, ...others] = text.split(',').map(Number);
  if (first !== undefined && [first, ...others].every((size) => Number.isInteger(size) && size > 0))
    return [first, ...others];
  throw new Error('usage: npm run bench -- incremental [ROUNDS] [GIB,GIB…]');
}

async function main(): Promise<void> {
  const rounds = roundsFrom('incremental');
  const sizesGiB = sizesFrom();
  await using lab = await startLab();
  const dataGiB = sizesGiB.reduce((sum, size) => sum + size / dataShare, 0) + sizesGiB[0] / dataShare;
  // Sparse, but each round leaves its increments.
  const room = await lab.loopFilesystem('xfs', (dataGiB + rounds + 4) * 1024);
  const storage = join(room, 'ours');
  await lab.run('mkdir', [storage]);
  const agent = await lab.installAgent({
    command: await buildProduct(lab),
    storages: { local: { kind: 'directory', path: storage } },
  });
  const service = agent.background(['agent'], { timeoutMs: serviceMs });
  await eventually(() => service.output().stderr.includes('the agent is ready'), { timeoutMs: 60_000 });
  const flows: Record<string, Flow> = {};
  for (const size of sizesGiB) {
    const ours = await backedUp(lab, agent, size);
    flows[`ours-${size}GiB`] = increment(ours);
    if (size === sizesGiB[0]) flows[`standalone-${size}GiB`] = increment(ours, '--standalone');
  }
  flows['virtnbdbackup'] = await virtnbdbackupFor(lab, sizesGiB[0], join(room, 'theirs'));
  const result = await measureInTurn(lab, flows, rounds);
  const asked = service.output().stderr.split('"backup asked for"').length - 1;
  if (asked !== (rounds + 2) * sizesGiB.length) throw new Error(`the service was asked for ${asked} backups`);
  const about = {
    changedMiB,
    pieceKiB,
    pieces: (changedMiB * 512) / pieceKiB,
    sizesGiB,
    dataShare: 1 / dataShare,
    fileSystem: 'xfs',
  };
  console.log(
    JSON.stringify({ bench: 'incremental', rounds, ...(await toolVersions(lab)), about, ...result }, null, 2),
  );
}

await main();
