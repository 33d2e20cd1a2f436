/**
 * npm run bench -- pause [ROUNDS]: the pauses of modes `save` and `live` as the guest has them, from libvirt's events,
 * heard by one listener for all flows: from the stop of the vCPUs to their start. Five flows in turn:
 *   floor    virsh save, virsh restore, nothing between
 *   by-hand  what a careful administrator types: corrected definition, virsh save, mv, qemu-img create, chown,
 *            virsh restore, in one shell script, everything that can be prepared prepared
 *   ours     stillpoint backup, with everything that it checks and writes down
 *   virsh-live  virsh snapshot-create-as --live with memory and disk (then blockcommit --pivot, not measured)
 *   live     stillpoint backup --mode live; the second pause, around its pivot, is told apart
 */
import { execa } from 'execa';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LibvirtHypervisor } from '../agent/hypervisor/libvirt/libvirtHypervisor.ts';
import { DomainXml } from '../agent/hypervisor/domainXml.ts';
import { type Lab, type LabMachine, startLab } from '../test/lab/lab.ts';
import { writeFile } from 'node:fs/promises';
import { treePssBytes } from './processTree.ts';
import { buildProduct } from './product.ts';
import { paired, summarize } from './statistics.ts';

const roundsDefault = 15;
/** What `stillpoint backup` does before its pause takes about this long: the others begin theirs as late. */
const preparationMs = 1000;
/** Backups whose memory is watched. */
const memoryRuns = 3;
const guests = [
  { name: 'sp-small', memoryMiB: 512, fillMiB: 320 },
  { name: 'sp-large', memoryMiB: 2048, fillMiB: 1536 },
] as const;

/** Waits for one pause and measures it. */
class PauseListener {
  readonly #uuid: string;
  readonly #hypervisor: LibvirtHypervisor;
  #stoppedMs: number | undefined;
  /** Every pause since the flow began, in milliseconds. */
  pausesMs: number[] = [];
  #done: (() => void) | undefined;

  constructor(hypervisor: LibvirtHypervisor, uuid: string) {
    this.#hypervisor = hypervisor;
    this.#uuid = uuid;
  }

  async start(): Promise<() => Promise<void>> {
    return this.#hypervisor.subscribe((event) => {
      if (event.kind !== 'lifecycle' || event.uuid !== this.#uuid) return;
      if (event.event === 'suspended' || event.event === 'stopped') this.#stoppedMs ??= event.monotonicMs;
      if (event.event === 'resumed' && this.#stoppedMs !== undefined) {
        this.pausesMs.push(event.monotonicMs - this.#stoppedMs);
        this.#stoppedMs = undefined;
        this.#done?.();
      }
    });
  }

  /** Runs a flow and gives its first pause in milliseconds. */
  async measure(flow: () => Promise<void>): Promise<number> {
    this.#stoppedMs = undefined;
    this.pausesMs = [];
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#done = resolve;
    await flow();
    if (this.pausesMs.length === 0) await promise;
    const [first] = this.pausesMs;
    if (first === undefined) throw new Error('no pause was heard');
    return first;
  }
}

async function floor(lab: Lab, machine: LabMachine, ram: string): Promise<void> {
  const state = join(ram, 'floor.state');
  await script(lab, 'virsh save "$1" "$2" && virsh restore "$2" && rm "$2"', [machine.name, state]);
}

async function byHand(lab: Lab, machine: LabMachine, ram: string): Promise<void> {
  const state = join(ram, 'by-hand.state');
  const image = machine.imagePath();
  const retained = `${image}.retained`;
  const definition = join(lab.root, 'tmp', 'corrected.xml');
  const xml = DomainXml.parse(await lab.virsh('dumpxml', '--migratable', '--security-info', machine.name));
  xml.removeBackingStores();
  await writeFile(definition, xml.toString());
  const flow = `set -e
virsh save "$1" "$2" --xml "$5"
mv "$3" "$4"
qemu-img create -q -f qcow2 -F qcow2 -b "$4" "$3"
chown --reference="$4" "$3"
chmod --reference="$4" "$3"
virsh restore "$2"`;
  await script(lab, flow, [machine.name, state, image, retained, definition]);
  // Not part of the pause: back to one image, as ours does.
  const after = 'virsh blockpull "$1" vda --wait && virsh suspend "$1" && virsh resume "$1" && rm "$2" "$3"';
  await script(lab, after, [machine.name, state, retained]);
}

/** Memory and disk at one instant, as an administrator types it who knows `--live`. */
async function virshLive(lab: Lab, machine: LabMachine, ram: string): Promise<void> {
  const memory = join(ram, 'virsh-live.state');
  const image = machine.imagePath();
  const overlay = `${image}.overlay`;
  const flow = `virsh snapshot-create-as "$1" --live --atomic --no-metadata \
--memspec "file=$2,snapshot=external" --diskspec "vda,snapshot=external,file=$3"`;
  await script(lab, flow, [machine.name, memory, overlay]);
  // Not part of the pause: back to one image.
  const after = 'virsh blockcommit "$1" vda --active --top "$3" --base "$4" --wait --pivot && rm "$2" "$3"';
  await script(lab, after, [machine.name, memory, overlay, image]);
}

/**
 * The same start for each flow. What the flow before has left unwritten would be flushed in the pause of this one.
 * As much free memory of the host is touched as a flow will use: a host that is a virtual machine itself gives free
 * memory back to its own host, and getting it again costs a restore up to a second, by chance.
 */
async function settle(lab: Lab, ram: string, sizeMiB: number): Promise<void> {
  const text = 'sync; dd if=/dev/zero of="$1" bs=1M count="$2" status=none && rm "$1"';
  await script(lab, text, [join(ram, 'warm'), `${sizeMiB}`]);
}

async function script(lab: Lab, text: string, args: readonly string[]): Promise<void> {
  await lab.run('sh', ['-c', text, 'sh', ...args], { timeoutMs: 300_000 });
}

async function measureGuest(
  lab: Lab,
  hypervisor: LibvirtHypervisor,
  guest: (typeof guests)[number],
  rounds: number,
): Promise<object> {
  const { name, memoryMiB, fillMiB } = guest;
  const machine = await lab.createMachine({ name, memoryMiB, volumes: [{ target: 'vda', sizeMiB: 256 }] });
  await machine.waitUntilWriting({ rounds: 20 });
  await machine.command(`fill ${fillMiB}`, 120_000);
  // All flows save to the same RAM disk, large enough for its state, and for warming up.
  const ram = await lab.smallTmpfs(3 * memoryMiB + 64);
  const agent = await lab.installAgent({
    command: await buildProduct(lab),
    name: `agent-${name}`,
    agent: { ramDisk: join(ram, 'stillpoint') },
  });
  const listener = new PauseListener(hypervisor, machine.uuid);
  const stop = await listener.start();
  const pauses = {
    floor: [] as number[],
    byHand: [] as number[],
    ours: [] as number[],
    virshLive: [] as number[],
    live: [] as number[],
    livePivot: [] as number[],
  };
  let pssBytesMax = 0;
  const ours = async (mode: 'save' | 'live', watchMemory = false): Promise<void> => {
    const run = agent.background(['backup', machine.name, '--mode', mode, '--quiet']);
    const ended = new AbortController();
    const watch = async (): Promise<void> => {
      while (!ended.signal.aborted) {
        pssBytesMax = Math.max(pssBytesMax, await treePssBytes(run.pid));
        await sleep(50);
      }
    };
    const watching = watchMemory ? watch() : undefined;
    const { exitCode, stderr } = await run.done;
    ended.abort();
    await watching;
    if (exitCode !== 0) throw new Error(`the backup failed: ${stderr}`);
    await lab.run('find', [agent.storageDir, '-mindepth', '1', '-delete']);
  };
  const measure = async (flow: () => Promise<void>, leadMs = 0): Promise<number> => {
    await settle(lab, ram, 3 * memoryMiB);
    await sleep(leadMs);
    return listener.measure(flow);
  };
  // In runs of their own: counting the memory of a process holds it up.
  for (let run = 0; run < memoryRuns; run += 1) await ours('save', true);
  for (let run = 0; run < memoryRuns; run += 1) await ours('live', true);
  for (let round = 0; round < rounds; round += 1) {
    pauses.floor.push(await measure(() => floor(lab, machine, ram), preparationMs));
    pauses.byHand.push(await measure(() => byHand(lab, machine, ram), preparationMs));
    pauses.ours.push(await measure(() => ours('save')));
    pauses.virshLive.push(await measure(() => virshLive(lab, machine, ram), preparationMs));
    pauses.live.push(await measure(() => ours('live')));
    pauses.livePivot.push(Math.max(...listener.pausesMs.slice(1)));
    process.stderr.write(
      `${name} round ${round + 1}/${rounds}: floor ${last(pauses.floor)} ms, by hand ${last(pauses.byHand)} ms, ours ${last(pauses.ours)} ms, virsh --live ${last(pauses.virshLive)} ms, live ${last(pauses.live)} + ${last(pauses.livePivot)} ms\n`,
    );
  }
  await stop();
  await machine.remove();
  return {
    guest: { memoryMiB, filledMiB: fillMiB },
    pauseMs: {
      floor: summarize(pauses.floor),
      byHand: summarize(pauses.byHand),
      ours: summarize(pauses.ours),
      virshLive: summarize(pauses.virshLive),
      live: summarize(pauses.live),
      livePivot: summarize(pauses.livePivot),
    },
    liveRatioToByHand: summarize(
      paired(pauses.live, pauses.byHand, (a, b) => a / b),
      3,
    ),
    liveRatioToVirshLive: summarize(
      paired(pauses.live, pauses.virshLive, (a, b) => a / b),
      3,
    ),
    ratioToByHand: summarize(
      paired(pauses.ours, pauses.byHand, (a, b) => a / b),
      3,
    ),
    ratioToFloor: summarize(
      paired(pauses.ours, pauses.floor, (a, b) => a / b),
      3,
    ),
    minusByHandMs: summarize(paired(pauses.ours, pauses.byHand, (a, b) => a - b)),
    minusFloorMs: summarize(paired(pauses.ours, pauses.floor, (a, b) => a - b)),
    agentPssMiBMax: Math.round(pssBytesMax / 1024 / 1024),
  };
}

function last(values: readonly number[]): string {
  return (values.at(-1) ?? 0).toFixed(0);
}

async function main(): Promise<void> {
  const rounds = Number(process.argv[2] ?? roundsDefault);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error('usage: npm run bench -- pause [ROUNDS]');
  await using lab = await startLab();
  await using hypervisor = new LibvirtHypervisor({ uri: lab.uri });
  const results: object[] = [];
  for (const guest of guests) results.push(await measureGuest(lab, hypervisor, guest, rounds));
  const { stdout: qemu } = await execa('qemu-img', ['--version']);
  console.log(
    JSON.stringify(
      {
        bench: 'pause',
        rounds,
        libvirt: (await hypervisor.hostInfo()).libvirtVersion,
        qemu: qemu.split('\n')[0],
        results,
      },
      null,
      2,
    ),
  );
}

await main();
