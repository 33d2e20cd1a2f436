import path from 'node:path';
import t from 'tap';
import { eventually, type Lab, startLab } from '../lab/lab.ts';
import { keepSecret } from '../secrets.ts';
import {
  artifact,
  requireError,
  requireFinished,
  requireNothingLost,
  TestAgent,
  witness,
} from './support.ts';

const mib = 1024 * 1024;
const secretUuid = '6f4a3b7e-5a3e-4f0b-9f57-2b3b7f9d7a12';
const luksSecret = keepSecret('LUKS secret', 'luks-that-nobody-may-see');

/** A loop device, which goes with `end`. */
async function loopDevice(lab: Lab, name: string, format: 'raw' | 'qcow2'): Promise<string> {
  const file = path.join(lab.imagesDir, name);
  await lab.run('truncate', ['-s', `${(format === 'raw' ? 16 : 24) * mib}`, file]);
  const device = (await lab.run('losetup', ['--find', '--show', file])).stdout.trim();
  if (format === 'qcow2') await lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', device, '16M']);
  return device;
}

/** A value for a secret, and an image that it opens. */
async function encryptedImage(lab: Lab, file: string): Promise<void> {
  const xml = `<secret ephemeral='yes' private='no'><uuid>${secretUuid}</uuid></secret>`;
  const at = path.join(lab.root, 'tmp/secret');
  await lab.run('tee', [`${at}.xml`], { input: xml });
  await lab.run('tee', [`${at}.value`], { input: luksSecret });
  await lab.virsh('secret-define', `${at}.xml`);
  await lab.virsh('secret-set-value', secretUuid, '--file', `${at}.value`, '--plain');
  const key = ['--object', `secret,id=s,data=${luksSecret}`];
  const options = ['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200'];
  // On a busy machine QEMU may be "unable to get accurate CPU usage" for the key's iterations.
  await eventually(
    () => lab.run('qemu-img', ['create', '-q', '-f', 'qcow2', ...key, ...options, file, '4M']),
    {
      timeoutMs: 60_000,
      intervalMs: 200,
    },
  );
}

function disk(type: string, format: string, source: string, target: string, inner = ''): string {
  return `<disk type='${type}' device='disk'><driver name='qemu' type='${format}'/>${source}
    <target dev='${target}' bus='${target.startsWith('sd') ? 'sata' : 'virtio'}'/>${inner}</disk>`;
}

void t.test('volumes that are no image files', async (t) => {
  await using lab = await startLab();
  const agent = await TestAgent.install(lab);
  const devices = [await loopDevice(lab, 'raw.img', 'raw'), await loopDevice(lab, 'qcow2.img', 'qcow2')];
  const [raw = '', qcow2 = ''] = devices;
  const pool = path.join(lab.imagesDir, 'pool');
  await lab.run('mkdir', ['-p', pool]);
  await lab.virsh('pool-define-as', 'sp-pool', 'dir', '--target', pool);
  await lab.virsh('pool-start', 'sp-pool');
  // libvirt 9.0 makes version 2 images of qcow2, which keep no bitmaps.
  await lab.virsh('vol-create-as', 'sp-pool', 'one.qcow2', '16M', '--format', 'qcow2');
  const socket = '/run/sp-served';
  const served = path.join(lab.imagesDir, 'served.img');
  await lab.run('truncate', ['-s', `${8 * mib}`, served]);
  const server = lab.background('qemu-nbd', [
    '-f',
    'raw',
    '-x',
    'disk',
    '-k',
    socket,
    '-t',
    '--shared=4',
    served,
  ]);
  await eventually(async () => (await lab.run('test', ['-S', socket], { check: false })).exitCode === 0);
  await lab.run('chmod', ['666', socket]);
  const encrypted = path.join(lab.imagesDir, 'encrypted.qcow2');
  await encryptedImage(lab, encrypted);
  const network = `<source protocol='nbd' name='disk'><host transport='unix' socket='${socket}'/></source>`;
  const networkDisk = disk('network', 'raw', network, 'sda');
  const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${secretUuid}'/></encryption>`;
  const encryptedDisk = disk('file', 'qcow2', `<source file='${encrypted}'/>`, 'sdb', encryption);
  const machine = await lab.createMachine({
    name: 'sp-kinds',
    volumes: [{ target: 'vda' }],
    extraDevicesXml: [
      disk('block', 'raw', `<source dev='${raw}'/>`, 'vdb'),
      disk('block', 'qcow2', `<source dev='${qcow2}'/>`, 'vdc'),
      disk('volume', 'qcow2', "<source pool='sp-pool' volume='one.qcow2'/>", 'vdd'),
      networkDisk,
    ].join(''),
  });
  const attach = async (what: 'attach-device' | 'detach-device', xml: string): Promise<void> => {
    const file = path.join(lab.root, 'tmp/device.xml');
    await lab.run('tee', [file], { input: xml });
    await lab.virsh(what, machine.uuid, file, '--config');
  };
  const images = {
    vdb: ['raw', raw],
    vdc: ['qcow2', qcow2],
    vdd: ['qcow2', path.join(pool, 'one.qcow2')],
  } as const;
  const same = async (target: keyof typeof images | 'sda', name = machine.name): Promise<void> => {
    const [format, image] = target === 'sda' ? (['raw', served] as const) : images[target];
    const stored = artifact(await agent.latest(name), target);
    const compared = await lab.run(
      'qemu-img',
      ['compare', '-U', '-f', 'qcow2', '-F', format, stored, image],
      {
        check: false,
      },
    );
    t.equal(compared.exitCode, 0, `${target} is byte for byte what the machine has: ${compared.stdout}`);
  };
  const write = (target: string, image: readonly string[]) =>
    lab.run('qemu-io', ['-f', ...image, '-c', `write -P ${target.charCodeAt(2)} 2M 1M`]);
  await using _loops = {
    [Symbol.asyncDispose]: async (): Promise<void> => {
      if (!(await machine.state()).startsWith('shut off')) await machine.destroy();
      await server.kill9();
      for (const device of devices) await lab.run('losetup', ['--detach', device]);
    },
  };
  const whole = await witness(lab, machine);

  await t.test('modes "save" and "live" refuse them, and say which mode can', async (t) => {
    for (const mode of ['save', 'live'] as const) {
      const refused = await agent.backup(machine, { mode });
      requireError(t, refused, 'VOLUME_UNSUPPORTED');
      t.match(refused.error?.hint, '--mode disk');
    }
    await requireNothingLost(t, lab, agent, whole);
  });

  await t.test('block devices, a pool volume and a network disk are read by mode "disk"', async (t) => {
    await machine.pauseWriter();
    requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
    for (const target of ['vdb', 'vdc', 'vdd', 'sda'] as const) await same(target);
    const { manifest } = await agent.latest(machine.name);
    t.match(
      manifest.volumes.map(({ target, kind, source }) => ({ target, kind, source })),
      [
        { target: 'vda', kind: undefined },
        { target: 'vdb', kind: 'block', source: raw },
        { target: 'vdc', kind: 'block', source: qcow2 },
        { target: 'vdd', kind: undefined, source: path.join(pool, 'one.qcow2') },
        { target: 'sda', kind: 'network', source: `nbd://${socket}/disk` },
      ],
    );
    t.match(
      manifest.extras.find(({ kind }) => kind === 'pool'),
      { name: 'sp-pool' },
    );
    await machine.continueWriter();
  });

  await t.test(
    'a qcow2 image on a device keeps bitmaps, a version 2 image and the others do not',
    async (t) => {
      await machine.pauseWriter();
      requireFinished(t, await agent.backup(machine, { mode: 'disk' }));
      for (const target of ['vdb', 'vdc', 'vdd', 'sda'] as const) await same(target);
      const { manifest } = await agent.latest(machine.name);
      t.same(
        manifest.volumes.map(({ target, read }) => [target, read]),
        [
          ['vda', 'increment'],
          ['vdb', 'full'],
          ['vdc', 'increment'],
          ['vdd', 'full'],
          ['sda', 'full'],
        ],
      );
      await machine.continueWriter();
      await requireNothingLost(t, lab, agent, whole);
    },
  );

  await t.test('in place nothing is put over a device; as a new machine they become files', async (t) => {
    requireError(t, await agent.restore('sp-kinds@latest', { inPlace: true }), 'VOLUME_NOT_A_FILE');
    const map = { sda: path.join(lab.imagesDir, 'copy-sda.raw') };
    const to = path.join(lab.imagesDir, 'copy');
    await lab.run('mkdir', [to]);
    const onto = { as: 'sp-copy', to, map: { vdb: raw } };
    requireError(t, await agent.restore('sp-kinds@latest', onto), 'VOLUME_NOT_A_FILE');
    requireFinished(t, await agent.restore('sp-kinds@latest', { as: 'sp-copy', to, map, start: 'boot' }));
    const copy = await lab.findMachine('sp-copy');
    await copy.waitUntilWriting({ rounds: 5 });
    t.match(await copy.verifyFromInside(), { missing: 0, torn: 0, readErrors: 0 });
    t.notMatch(await copy.xml('inactive'), /type='(?:block|network|volume)'/, 'it has files alone');
    await copy.destroy();
    await copy.remove();
  });

  await t.test('mode "offline" reads devices and pool volumes, and no network disk', async (t) => {
    await machine.destroy();
    requireError(t, await agent.backup(machine, { mode: 'offline' }), 'VOLUME_UNSUPPORTED');
    await attach('detach-device', networkDisk);
    for (const [target, [format, image]] of Object.entries(images)) await write(target, [format, image]);
    requireFinished(t, await agent.backup(machine, { mode: 'offline' }));
    for (const target of ['vdb', 'vdc', 'vdd'] as const) await same(target);
    await lab.virsh('pool-destroy', 'sp-pool');
    requireError(t, await agent.backup(machine, { mode: 'offline' }), 'MISSING_NECESSARY_FILES');
    await lab.virsh('pool-start', 'sp-pool');
    // Another machine has the device open.
    const other = lab.background('sh', ['-c', 'exec 3<>"$0"; echo held; exec sleep 60', raw], {
      timeoutMs: 60_000,
    });
    await eventually(() => other.output().stdout.includes('held'));
    requireError(t, await agent.backup(machine, { mode: 'offline' }), 'IMAGE_LOCKED');
    await other.kill9();
  });

  await t.test(
    'an encrypted image is stored encrypted while the machine is off, and never decrypted',
    async (t) => {
      await attach('attach-device', encryptedDisk);
      requireFinished(t, await agent.backup(machine, { mode: 'offline' }));
      const backup = await agent.latest(machine.name);
      const stored = artifact(backup, 'sdb');
      t.equal(
        (await lab.run('cmp', [stored, encrypted], { check: false })).exitCode,
        0,
        'it is the same file',
      );
      t.match(backup.manifest.volumes.at(-1), { target: 'sdb', encrypted: true });
      await machine.start();
      const refused = await agent.backup(machine, { mode: 'disk' });
      requireError(t, refused, 'VOLUME_ENCRYPTED');
      t.match(refused.error?.hint, '--mode offline');
      await machine.destroy();
      for (const { source } of backup.manifest.volumes.filter(({ kind }) => kind === 'block'))
        await attach(
          'detach-device',
          disk('block', 'raw', `<source dev='${source}'/>`, source === raw ? 'vdb' : 'vdc'),
        );
    },
  );

  await t.test('a pool volume is restored in place, into its pool', async (t) => {
    requireFinished(t, await agent.backup(machine, { mode: 'offline' }));
    const persistentXml = await machine.xml('inactive');
    const before = (await lab.run('sha256sum', [encrypted])).stdout;
    await lab.run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 4M 1M', images.vdd[1]]);
    requireFinished(t, await agent.restore('sp-kinds@latest', { inPlace: true, start: 'none' }));
    await same('vdd');
    t.equal((await lab.run('sha256sum', [encrypted])).stdout, before, 'the encrypted one too');
    t.equal(await machine.xml('inactive'), persistentXml, 'the definition still names the pool');
    await machine.start();
    await machine.waitUntilWriting({ rounds: 5 });
  });
});
