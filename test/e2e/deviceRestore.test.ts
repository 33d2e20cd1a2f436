import { spawn } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import type { MachineSummary } from '../../agent/hypervisor/hypervisor.ts';
import { readBlockDevice, usersOfDevice } from '../../agent/restore/blockDevice.ts';
import { planDeviceRestore, restoreToDevice } from '../../agent/restore/deviceRestore.ts';
import { eventually, startLab } from '../lab/lab.ts';
import { FaultyFiles, openBelow } from '../sim/faultyFiles.ts';
import { removeSharedImages, Site } from '../sim/site.ts';
import { OfflineWatch } from '../../agent/snapshot/offlineWatch.ts';
import { planRead } from '../../agent/snapshot/planRead.ts';
import { newId } from '../../common/ids.ts';
import { isHalfRestored } from '../../common/restoreMark.ts';
import { DirectoryStorage } from '../../storage/directory/directoryStorage.ts';
import { volumeSource } from '../../storage/repository/repositoryFixture.ts';
import { machine, manifestOf, placeFor, store } from '../../storage/repositoryStorage/fixture.ts';
import type { BackupEntry, Storage } from '../../storage/storage.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? randomInt(2 ** 31));
t.comment(`seed ${seed}; STILLPOINT_TEST_SEED repeats where it is interrupted`);

/** Data, zeros in whole pieces and within one, and an end that is no multiple of a block of 4 KiB. */
const volume = Buffer.concat([
  randomBytes(1_048_576),
  Buffer.alloc(8_388_608),
  randomBytes(4_194_304),
  Buffer.alloc(131_072),
  randomBytes(5 * 512),
]);
const deviceBytes = 16 * 1024 * 1024;

const { signal } = new AbortController();

/** A loop device full of other bytes, gone after the test. */
async function loopDevice(t: Test, sizeBytes = deviceBytes): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'sp-loop-'));
  const file = join(directory, 'device');
  await writeFile(file, Buffer.alloc(sizeBytes, 0xa5));
  const { stdout } = await execa('losetup', ['--find', '--show', file]);
  t.teardown(async () => {
    // The kernel keeps that for who gets this number next.
    await execa('blockdev', ['--setrw', stdout]);
    await execa('losetup', ['--detach', stdout]);
    await rm(directory, { recursive: true });
  });
  return stdout;
}

async function stored(
  t: Test,
  kind: 'repository' | 'directory',
): Promise<{ storage: Storage; entry: BackupEntry }> {
  if (kind === 'repository') {
    const place = await placeFor(t, 'vault', t.testdir());
    return { storage: place.storage, entry: (await store(place, volume)).entry };
  }
  const directory = t.testdir({ memory: randomBytes(1000), definition: '<domain/>', store: {} });
  const storage = new DirectoryStorage({ name: 'local', path: join(directory, 'store') });
  const id = newId();
  const writer = await storage.begin({ jobId: newId(), machine });
  const digest = await writer.addVolume(volumeSource(volume), 'v');
  const memory = await writer.addByCopy(join(directory, 'memory'), 'm');
  const definition = await writer.addByCopy(join(directory, 'definition'), 'd');
  const about = { ...digest, virtualSizeBytes: volume.length, read: 'full' } as const;
  return { storage, entry: await writer.commit(manifestOf({ id, volume: about, memory, definition })) };
}

/** A host with these disks in a machine of its own. */
function host(uuid: string, disk: string, state: 'running' | 'shut-off' = 'shut-off') {
  const xml = `<domain type='kvm'><name>other</name><uuid>${uuid}</uuid><devices><disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='${disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>`;
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what is asked of a machine here
  const summary = {
    uuid,
    name: 'other',
    persistent: true,
    hasManagedSave: false,
    status: { state },
  } as MachineSummary;
  return {
    machines: () => Promise.resolve([summary]),
    definition: () => Promise.resolve(xml),
    volumePath: () => Promise.reject(new Error('no pool is asked for')),
  };
}
const emptyHost: ReturnType<typeof host> = { ...host('x', '/none'), machines: () => Promise.resolve([]) };

async function restore(
  t: Test,
  { storage, entry }: { storage: Storage; entry: BackupEntry },
  device: string,
  onProgress: () => void = () => undefined,
  ending = signal,
): Promise<void> {
  const plan = await planDeviceRestore(emptyHost, entry, { target: 'vda', device, signal });
  const runDirectory = await mkdtemp(join(tmpdir(), 'sp-run-'));
  try {
    await restoreToDevice(emptyHost, storage, entry, plan, { signal: ending, runDirectory, onProgress });
  } finally {
    t.same(await readdir(runDirectory), [], 'nothing is left of what served it');
    await rm(runDirectory, { recursive: true });
  }
}

async function contentOf(device: string): Promise<Buffer> {
  return readFile(device);
}

for (const kind of ['repository', 'directory'] as const) {
  void t.test(
    `a volume from a ${kind} stands on a device, zeros where it has zeros, nothing behind it`,
    async (t) => {
      const from = await stored(t, kind);
      await t.test('whole', async (t) => {
        const device = await loopDevice(t);
        await restore(t, from, device);
        const content = await contentOf(device);
        t.ok(content.subarray(0, volume.length).equals(volume));
        t.ok(
          content.subarray(volume.length).equals(Buffer.alloc(deviceBytes - volume.length, 0xa5)),
          'as it was',
        );
        t.notOk(await isHalfRestored(device));
        t.same(
          (await openBelow('/dev')).filter((path) => path === device),
          [],
        );
      });

      await t.test('interrupted anywhere it says so, is marked, and can be repeated', async (t) => {
        const device = await loopDevice(t);
        for (let round = 0; round < 3; round++) {
          const controller = new AbortController();
          let left = (seed + round) % 4;
          const stop = (): void => {
            if (left-- === 0) controller.abort();
          };
          await t.rejects(restore(t, from, device, stop, controller.signal), {
            code: 'DEVICE_HALF_WRITTEN',
            hint: /repeat/,
          });
          t.ok(await isHalfRestored(device));
          const { remarks } = await planDeviceRestore(emptyHost, from.entry, {
            target: undefined,
            device,
            signal,
          });
          t.match(remarks.join(), /has not ended/);
        }
        await restore(t, from, device);
        t.ok((await contentOf(device)).subarray(0, volume.length).equals(volume));
      });
    },
  );
}

/** Begins a restore onto a device, and interrupts it. */
async function restoreHalf(
  t: Test,
  from: { storage: Storage; entry: BackupEntry },
  device: string,
): Promise<void> {
  const controller = new AbortController();
  await t.rejects(
    restore(t, from, device, () => controller.abort(), controller.signal),
    { code: 'DEVICE_HALF_WRITTEN' },
  );
}

void t.test('a half restored device is never backed up as good', async (t) => {
  const from = await stored(t, 'repository');
  const device = await loopDevice(t);
  const site = await Site.create({ targets: ['vda'] });
  t.teardown(async () => {
    await site[Symbol.asyncDispose]();
    await removeSharedImages();
  });
  const simulated = site.world.machine('m');
  const disk = `<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='${device}'/><target dev='vdb' bus='virtio'/></disk></devices>`;
  const { persistent, instance } = simulated;
  if (persistent === undefined || instance === undefined) throw new Error('the machine does not run');
  simulated.persistent = persistent.replace('</devices>', disk);
  simulated.instance = { ...instance, definition: instance.definition.replace('</devices>', disk) };
  const hypervisor = site.world.connect();
  const plan = (mode: 'disk' | 'offline') =>
    planRead(hypervisor, {
      jobId: newId(),
      machineUuid: site.uuid,
      mode,
      modeReason: '',
      retainDirectory: null,
      runDirectory: site.runDirectory,
    });
  const refusal = {
    code: 'CORRUPT_DISK_IMAGE_FOUND',
    message: /half restored/,
    hint: new RegExp(`--volume vdb --to-device ${device}`),
  };
  await restoreHalf(t, from, device);
  await t.rejects(plan('disk'), refusal, 'its machine was started on it');
  await hypervisor.powerOff(site.uuid);
  await t.rejects(plan('offline'), refusal);
  await restore(t, from, device);
  await using watch = await OfflineWatch.start(hypervisor, await plan('offline'));
  await watch.requireUntouched();
  await restoreHalf(t, from, device);
  await t.rejects(
    watch.requireUntouched(),
    { code: 'MACHINE_INTERFERED', message: /half restored/ },
    'nor when the restore began after it was planned',
  );
});

void t.test('a device that anybody has a use for is not touched', async (t) => {
  const from = await stored(t, 'repository');
  const plan = async (device: string, at = emptyHost) =>
    planDeviceRestore(at, from.entry, { target: 'vda', device, signal });

  await t.test('no block device', async (t) => {
    await t.rejects(plan('/dev/null'), { code: 'DEVICE_UNSUITABLE', message: /not a block device/ });
    await t.rejects(plan(import.meta.filename), { code: 'DEVICE_UNSUITABLE' });
    await t.rejects(plan('/dev/there-is-none'), { code: 'DEVICE_UNSUITABLE', message: /no device/ });
  });

  await t.test('too small', async (t) => {
    await t.rejects(plan(await loopDevice(t, 8 * 1024 * 1024)), {
      code: 'DEVICE_UNSUITABLE',
      message: /needs/,
    });
  });

  await t.test('open in a process, whoever opened it exclusively or not', async (t) => {
    const device = await loopDevice(t);
    const child = spawn('sh', ['-c', `exec 3<${device}; echo open; read line`], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    t.teardown(() => child.kill());
    await once(child.stdout, 'data');
    await t.rejects(plan(device), { code: 'DEVICE_BUSY', message: /process \d+ \(sh\)/ });
  });

  await t.test('no other file of a process is asked for: it may be on a dead network mount', async (t) => {
    const device = await loopDevice(t);
    const child = spawn('sh', ['-c', `exec 3<${import.meta.filename} 4<${device}; echo open; read line`], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    t.teardown(() => child.kill());
    await once(child.stdout, 'data');
    const of = await readBlockDevice(device);
    const place = `/proc/${child.pid}/fd`;
    using files = new FaultyFiles(place);
    const users = await usersOfDevice(of, signal);
    t.match(users, [{ pid: child.pid }]);
    const asked = files.calls.filter(({ operation }) => operation === 'stat').map(({ path }) => path);
    t.same(asked.includes(`${place}/3`), false);
    t.same(asked.includes(`${place}/4`), true);
  });

  await t.test('waiting for whoever has it open ends with a signal', async (t) => {
    const device = await loopDevice(t);
    const child = spawn('sh', ['-c', `exec 3<${device}; echo open; read line`], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    t.teardown(() => child.kill());
    await once(child.stdout, 'data');
    const ending = new AbortController();
    const planned = planDeviceRestore(emptyHost, from.entry, {
      target: 'vda',
      device,
      signal: ending.signal,
    });
    ending.abort();
    await t.rejects(planned, { name: 'AbortError' });
  });

  await t.test('mounted', async (t) => {
    const device = await loopDevice(t);
    const place = t.testdir({ mnt: {} });
    await execa('mkfs.ext4', ['-q', device]);
    await execa('mount', [device, join(place, 'mnt')]);
    try {
      const before = await contentOf(device);
      await t.rejects(restore(t, from, device), { code: 'DEVICE_BUSY', message: /mounted/ });
      t.ok((await contentOf(device)).equals(before), 'nothing was written');
    } finally {
      await execa('umount', [join(place, 'mnt')]);
    }
  });

  await t.test('a disk of a machine, but for the machine itself while it is off', async (t) => {
    const device = await loopDevice(t);
    await t.rejects(plan(device, host('0b1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a02', device)), {
      code: 'DEVICE_BUSY',
      message: /disk of the machine other/,
    });
    await t.rejects(plan(device, host(machine.uuid, device, 'running')), { code: 'DEVICE_BUSY' });
    t.equal((await plan(device, host(machine.uuid, device))).device.path, device);
  });

  await t.test('read-only', async (t) => {
    const device = await loopDevice(t);
    await execa('blockdev', ['--setro', device]);
    await t.rejects(plan(device), { code: 'DEVICE_UNSUITABLE', message: /only be read/ });
  });
});

void t.test('damage of a backup is found before the device is touched', async (t) => {
  const from = await stored(t, 'directory');
  const file = await open(join(from.entry.directory, 'v'), 'r+');
  await file.write(Buffer.from('damage'), 0, 6, 600_000);
  await file.close();
  const device = await loopDevice(t);
  await t.rejects(restore(t, from, device), { code: 'BACKUP_DAMAGED' });
  t.ok((await contentOf(device)).every((byte) => byte === 0xa5));
});

void t.test(
  'the command restores a disk of a real machine that is off, and keeps its backup meanwhile',
  async (t) => {
    await using lab = await startLab();
    const agent = await lab.installAgent();
    const device = await loopDevice(t);
    const disk = `<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='${device}'/><target dev='vdb' bus='virtio'/></disk>`;
    const options = { name: 'sp-device', volumes: [{ target: 'vda' }], extraDevicesXml: disk };
    await lab.createMachine(options, { start: false });
    await writeFile(device, volume, { flag: 'r+' });
    const before = await contentOf(device);
    t.match(await agent.run(['backup', 'sp-device', '--mode', 'offline']), { exitCode: 0 });
    await writeFile(device, Buffer.alloc(deviceBytes, 0x5a), { flag: 'r+' });
    const args = ['restore', 'sp-device@latest', '--volume', 'vdb', '--to-device', device];

    const unasked = await agent.run(args);
    t.match(unasked, { exitCode: 2, stdout: /is overwritten, and nothing of it is kept/ });
    t.ok(
      (await contentOf(device)).every((byte) => byte === 0x5a),
      'nothing was written',
    );

    // A terminal, on which it asks.
    const command = [agent.command, ...args, '--config', agent.configFile].join(' ');
    const typed = join(lab.root, 'typed');
    await lab.run('mkfifo', [typed]);
    const terminal = ['-c', 'exec script -qec "$0" /dev/null 0<>"$1"', command, typed];
    const asking = lab.background('sh', terminal, { timeoutMs: 120_000 });
    await eventually(() => asking.output().stdout.includes('Type yes'), { timeoutMs: 60_000 });
    const remove = ['delete', 'sp-device@latest', '--yes'];
    t.match(await agent.run(remove), { exitCode: 7, stderr: /^MOUNT_BUSY/m });
    await asking.kill9();

    const restored = await agent.run([...args, '--yes']);
    t.match(restored, { exitCode: 0, stdout: /read back and compared/ }, restored.stderr);
    t.ok((await contentOf(device)).equals(before), 'the device is as it was');
    t.match(await agent.run(['backup', 'sp-device', '--mode', 'offline']), { exitCode: 0 });
    t.match(await agent.run(remove), { exitCode: 0 }, 'nothing keeps a backup any more');
  },
);
