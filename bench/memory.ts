/**
 * npm run bench -- memory [ROUNDS]: the memory of the agent and its children (proportional set size, without QEMU and
 * its tools) while it backs up four machines at the same time, as `npm run build` makes it and from the sources:
 *   disk         full backups of 512 MiB each, read over NBD
 *   increments   the next ones, with 64 MiB changed in each
 *   live         with their memory
 */
import { type Lab, type LabMachine, startLab } from '../test/lab/lab.ts';
import { qemuIo } from '../test/lab/qemuIo.ts';
import { roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';
import { mostMemory } from './mostMemory.ts';
import { type Summary, summarize } from './statistics.ts';

const mib = 1024 * 1024;
const machines = 4;
const dataMiB = 512;

async function createMachine(lab: Lab, index: number): Promise<LabMachine> {
  const machine = await lab.createMachine({
    name: `sp-memory-${index}`,
    memoryMiB: 128,
    rate: 1,
    volumes: [{ target: 'vda', sizeMiB: 2 * dataMiB, prefillMiB: dataMiB }],
  });
  await machine.waitUntilWriting();
  return machine;
}

async function main(): Promise<void> {
  const rounds = roundsFrom('memory');
  await using lab = await startLab();
  const options = { agent: { maxParallelMachines: machines } };
  const agents = {
    built: await lab.installAgent({ ...options, name: 'built', command: await buildProduct(lab) }),
    sources: await lab.installAgent({ ...options, name: 'sources' }),
  };
  const all: LabMachine[] = [];
  for (let index = 1; index <= machines; index += 1) all.push(await createMachine(lab, index));
  const names = all.map(({ name }) => name);
  const samples: Record<string, number[]> = {};
  for (let round = 0; round < rounds; round += 1) {
    for (const [form, agent] of Object.entries(agents)) {
      const measure = async (what: string, args: readonly string[]): Promise<void> => {
        const bytes = await mostMemory(agent, ['backup', ...names, ...args]);
        (samples[`${form} ${what}`] ??= []).push(bytes / mib);
        process.stderr.write(
          `round ${round + 1}/${rounds}: ${form}, ${what}: ${Math.round(bytes / mib)} MiB\n`,
        );
      };
      await measure('disk', ['--mode', 'disk', '--reread']);
      for (const machine of all)
        await qemuIo(lab, machine, 'vda', [`write -q -P ${round + 1} ${dataMiB}M 64M`]);
      await measure('increments', ['--mode', 'disk']);
      await measure('live', ['--mode', 'live']);
      await lab.run('find', [agent.storageDir, '-mindepth', '1', '-delete']);
    }
  }
  const pssMiB: Record<string, Summary> = {};
  for (const [what, values] of Object.entries(samples)) pssMiB[what] = summarize(values);
  console.log(
    JSON.stringify({ bench: 'memory', rounds, ...(await toolVersions(lab)), machines, pssMiB }, null, 2),
  );
}

await main();
