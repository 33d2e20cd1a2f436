/**
 * npm run bench -- backup [ROUNDS]: how long a full backup of a running machine takes, from the command to its end,
 * with everything on the disk. Four flows in turn:
 *   ours           stillpoint backup --mode disk, with digests and fsync
 *   nbdcopy        virsh backup-begin, nbdcopy --flush into a raw file, virsh domjobabort
 *   convert        virsh backup-begin, qemu-img convert into a qcow2 file, virsh domjobabort
 *   virtnbdbackup  virtnbdbackup -l full, as Debian has it
 */
import { chmod, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Lab, type LabMachine, startLab } from '../test/lab/lab.ts';
import { extentBytes, mib, volumeMiB, writeImage } from './largeImage.ts';
import { type Flow, measureInTurn, roundsFrom, toolVersions } from './flows.ts';
import { buildProduct } from './product.ts';

const withBackup = (command: string): string => `set -e
virsh -q backup-begin "$1" "$2" >/dev/null
${command}
virsh -q domjobabort "$1"
rm -f "$4"`;

function flowsFor(
  lab: Lab,
  machine: LabMachine,
  stillpoint: Flow,
  files: { readonly definition: string; readonly socket: string; readonly target: string },
): Readonly<Record<string, Flow>> {
  const { definition, socket, target } = files;
  const shell = async (text: string): Promise<void> => {
    const args = ['-c', text, 'sh', machine.name, definition, `nbd+unix:///vda?socket=${socket}`, target];
    await lab.run('sh', args, { timeoutMs: 600_000 });
  };
  const clean = async (): Promise<void> => {
    await lab.run('sh', ['-c', 'while [ -e "$1" ]; do sleep 0.1; done', 'sh', `${socket}.scratch`]);
    await rm(target, { recursive: true, force: true });
  };
  return {
    ours: stillpoint,
    nbdcopy: {
      run: () => shell(withBackup('nbdcopy --flush "$3" "$4.raw"; mv "$4.raw" "$4"')),
      cleanUp: clean,
    },
    convert: {
      run: () => shell(withBackup('qemu-img convert -f raw -O qcow2 "$3" "$4"; sync "$4"')),
      cleanUp: clean,
    },
    virtnbdbackup: {
      run: () =>
        shell('virtnbdbackup -d "$1" -l full -o "$4" >/dev/null 2>"$4.log" || { cat "$4.log" >&2; exit 1; }'),
      cleanUp: async () => {
        await shell(
          'for c in $(virsh checkpoint-list --name "$1"); do virsh -q checkpoint-delete "$1" "$c"; done',
        );
        await clean();
      },
    },
  };
}

async function main(): Promise<void> {
  const rounds = roundsFrom('backup');
  await using lab = await startLab();
  const image = join(lab.imagesDir, 'sp-bench.qcow2');
  await writeImage(lab, image);
  const machine = await lab.createMachine({
    name: 'sp-bench',
    memoryMiB: 256,
    rate: 20,
    volumes: [{ target: 'vda', path: image }],
  });
  await machine.waitUntilWriting({ rounds: 20 });
  // QEMU's user makes the socket.
  const socketDir = join(lab.root, 'bench-socket');
  await mkdir(socketDir);
  await chmod(socketDir, 0o777);
  const socket = join(socketDir, 'bench.sock');
  const definition = join(lab.root, 'tmp', 'backup.xml');
  await writeFile(
    definition,
    `<domainbackup mode='pull'><server transport='unix' socket='${socket}'/><disks>
<disk name='vda' backup='yes' type='file' exportname='vda'><scratch file='${socket}.scratch'/></disk></disks></domainbackup>`,
  );
  const agent = await lab.installAgent({ command: await buildProduct(lab) });
  const target = join(lab.root, 'bench-target');
  await mkdir(target);
  const ours: Flow = {
    run: async () => {
      const { exitCode, stderr } = await agent.run(['backup', machine.name, '--mode', 'disk', '--quiet']);
      if (exitCode !== 0) throw new Error(`the backup failed: ${stderr}`);
    },
    cleanUp: async () => {
      await lab.run('find', [agent.storageDir, '-mindepth', '1', '-delete']);
      // Every run is a first one; and virtnbdbackup refuses a machine with checkpoints of others.
      const { exitCode, stderr } = await agent.run(['release', machine.name]);
      if (exitCode !== 0) throw new Error(`the release failed: ${stderr}`);
    },
  };
  const flows = flowsFor(lab, machine, ours, { definition, socket, target: join(target, 'out') });
  const result = await measureInTurn(lab, flows, rounds);
  const about = { volumeMiB, dataMiB: volumeMiB / 2, extents: (volumeMiB * mib) / extentBytes / 2 };
  console.log(
    JSON.stringify({ bench: 'backup', rounds, ...(await toolVersions(lab)), about, ...result }, null, 2),
  );
}

await main();
