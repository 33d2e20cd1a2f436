import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, rename, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { execa } from 'execa';
import t, { type Test } from 'tap';

import { sameFileSystem } from '../../common/files.ts';
import { createImage } from '../../test/sim/images.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { planSave, type PreflightRequest } from './preflight.ts';

t.teardown(removeSharedImages);

async function qemuImg(...args: string[]): Promise<void> {
  await execa('qemu-img', args, { timeout: 30_000 });
}

async function siteFor(test: Test): Promise<Site> {
  const site = await Site.create({ targets: ['vda'] });
  test.teardown(() => site[Symbol.asyncDispose]());
  return site;
}

function planOf(site: Site, changes: Partial<PreflightRequest> = {}, machineUuid = site.uuid) {
  const request = {
    jobId: '01a1fa1b-a048-702f-a832-3f1deebf16d6',
    machineUuid,
    modeReason: '',
    retainDirectory: null,
    ramDisk: null,
    ramDiskReservedBytes: 0,
    checkpoint: null,
    ...changes,
  };
  return planSave(site.world.connect(), request);
}

/** Changes what the running machine and its persistent definition say. */
function redefine(site: Site, change: (xml: string) => string): void {
  const machine = site.world.machine('m');
  const { instance } = machine;
  if (machine.persistent === undefined || instance === undefined) throw new Error('the machine does not run');
  machine.persistent = change(machine.persistent);
  machine.instance = { ...instance, definition: change(instance.definition) };
}

function withDevice(device: string): (site: Site) => void {
  return (site) => redefine(site, (xml) => xml.replace('</devices>', `${device}</devices>`));
}

function inDisk(from: string | RegExp, to: string): (site: Site) => void {
  return (site) =>
    redefine(site, (xml) => {
      const changed = xml.replace(from, to);
      if (changed === xml) throw new Error(`nothing to replace by ${to}`);
      return changed;
    });
}

/** Sets a bit of the incompatible features in a qcow2 header (byte 72 to 79, big-endian). */
async function setIncompatible(image: string, bit: number): Promise<void> {
  const file = await open(image, 'r+');
  await file.write(Buffer.from([1 << bit]), 0, 1, 79);
  await file.close();
}

interface Refusal {
  readonly name: string;
  readonly code: string;
  readonly prepare: (site: Site, test: Test) => unknown;
  readonly request?: Partial<PreflightRequest>;
}

const refusals: readonly Refusal[] = [
  {
    name: 'a machine that is off',
    code: 'MACHINE_OFF',
    prepare: (site) => site.world.connect().powerOff(site.uuid),
  },
  {
    name: 'a transient machine',
    code: 'MACHINE_TRANSIENT',
    prepare: (site) => {
      site.world.machine('m').persistent = undefined;
    },
  },
  {
    name: 'a machine that is paused on an I/O error',
    code: 'MACHINE_STATE_UNSUITABLE',
    prepare: (site) => void (site.world.machine('m').status = { state: 'paused', reason: 'io-error' }),
  },
  {
    name: 'a machine that libvirt is saving',
    code: 'MACHINE_STATE_UNSUITABLE',
    prepare: (site) => {
      const job = { kind: 'unbounded', processedBytes: 0, totalBytes: 0 } as const;
      site.world.machine('m').operation = {
        name: 'save',
        controller: new AbortController(),
        job,
        done: Promise.resolve(),
      };
    },
  },
  {
    name: 'a passed-through device',
    code: 'HOST_DEVICE_UNSUPPORTED',
    prepare: withDevice("<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>"),
  },
  {
    name: 'a directory of the host',
    code: 'HOST_DEVICE_UNSUPPORTED',
    prepare: withDevice("<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>"),
  },
  {
    name: 'a TPM of the host',
    code: 'TPM_UNSUPPORTED',
    prepare: withDevice("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>"),
  },
  {
    name: 'a machine with nothing but removable media',
    code: 'NO_VOLUMES',
    prepare: inDisk('device="disk"', 'device="cdrom"'),
  },
  { name: 'a read-only volume alone', code: 'NO_VOLUMES', prepare: inDisk('</disk>', '<readonly/></disk>') },
  { name: 'a LUN', code: 'VOLUME_UNSUPPORTED', prepare: inDisk('device="disk"', 'device="lun"') },
  {
    name: 'a block device',
    code: 'VOLUME_UNSUPPORTED',
    prepare: withDevice(
      "<disk type='block' device='disk'><driver type='qcow2'/><source dev='/dev/x'/><target dev='vdx'/></disk>",
    ),
  },
  {
    name: 'a network volume',
    code: 'VOLUME_UNSUPPORTED',
    prepare: withDevice(
      "<disk type='network' device='disk'><driver type='qcow2'/><source protocol='rbd' name='a/b'/><target dev='vdx'/></disk>",
    ),
  },
  {
    name: 'a transient volume',
    code: 'VOLUME_UNSUPPORTED',
    prepare: inDisk('</disk>', '<transient/></disk>'),
  },
  {
    name: 'a volume of another format',
    code: 'VOLUME_UNSUPPORTED',
    prepare: inDisk('type="qcow2"', 'type="vmdk"'),
  },
  { name: 'a raw volume', code: 'VOLUME_RAW', prepare: inDisk('type="qcow2"', 'type="raw"') },
  {
    name: 'a volume that machines share',
    code: 'VOLUME_SHARED',
    prepare: inDisk('</disk>', '<shareable/></disk>'),
  },
  {
    name: 'a volume with encryption in its definition',
    code: 'VOLUME_ENCRYPTED',
    prepare: inDisk('</disk>', "<encryption format='luks'/></disk>"),
  },
  {
    name: 'an encrypted image',
    code: 'VOLUME_ENCRYPTED',
    prepare: (site) =>
      qemuImg(
        'create',
        '-q',
        '-f',
        'qcow2',
        '--object',
        'secret,id=s,data=secret',
        '-o',
        'encrypt.format=aes,encrypt.key-secret=s',
        site.image('vda'),
        '1M',
      ),
  },
  {
    name: 'an image with an external data file',
    code: 'VOLUME_UNSUPPORTED',
    prepare: (site) =>
      qemuImg(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        `data_file=${site.image('vda')}.data`,
        site.image('vda'),
        '1M',
      ),
  },
  {
    name: 'a volume with a block job',
    code: 'VOLUME_BUSY',
    prepare: (site) => {
      const progress = {
        kind: 'pull',
        bandwidthBytesPerSecond: 0,
        currentBytes: 0,
        endBytes: 1,
        ready: false,
      };
      site.world.machine('m').instance?.blockJobs.set('vda', {
        progress,
        controller: new AbortController(),
        done: Promise.resolve(),
        finish: undefined,
      });
    },
  },
  {
    name: 'an image that another process has open for writing',
    code: 'IMAGE_LOCKED',
    prepare: async (site, test) => {
      const holder = spawn('sh', ['-c', 'exec 3<>"$1"; echo open; exec sleep 60', 'sh', site.image('vda')], {
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      test.teardown(() => holder.kill('SIGKILL'));
      await once(holder.stdout, 'data');
    },
  },
  {
    name: 'snapshots of libvirt',
    code: 'INTERNAL_SNAPSHOTS',
    prepare: (site) => void site.world.machine('m').snapshots.push('before-upgrade'),
  },
  {
    name: 'snapshots inside the image',
    code: 'INTERNAL_SNAPSHOTS',
    prepare: (site) => qemuImg('snapshot', '-c', 'inside', site.image('vda')),
  },
  {
    name: 'checkpoints',
    code: 'CHECKPOINTS_PRESENT',
    prepare: (site) => void site.world.machine('m').checkpoints.push('theirs'),
  },
  {
    name: 'a backing file that is named relatively',
    code: 'RELATIVE_BACKING',
    prepare: async (site) => {
      await rename(site.image('vda'), site.image('base'));
      await qemuImg('create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', 'm-base.qcow2', site.image('vda'));
    },
  },
  {
    name: 'an image that has been deleted',
    code: 'MISSING_NECESSARY_FILES',
    prepare: (site) => rename(site.image('vda'), `${site.image('vda')}.moved`),
  },
  {
    name: 'an NVRAM file that is not there',
    code: 'MISSING_NECESSARY_FILES',
    prepare: (site) => redefine(site, (xml) => xml.replace('</os>', '<nvram>/nowhere/vars.fd</nvram></os>')),
  },
  {
    name: 'an image with subclusters, whose merge QEMU 7.2 does not survive',
    code: 'VOLUME_UNSUPPORTED',
    prepare: (site) =>
      qemuImg('create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', site.image('vda'), '1M'),
  },
  {
    name: 'an image that is marked corrupt',
    code: 'CORRUPT_DISK_IMAGE_FOUND',
    prepare: (site) => setIncompatible(site.image('vda'), 1),
  },
  {
    name: 'two volumes that are one file',
    code: 'XML_INCONSISTENCY',
    prepare: async (site) => {
      await symlink(site.image('vda'), `${site.image('vda')}.link`);
      redefine(site, (xml) => {
        const disk = /<disk [\s\S]*?<\/disk>/.exec(xml)?.[0] ?? '';
        const twin = disk.replace('vda.qcow2', 'vda.qcow2.link').replace('dev="vda"', 'dev="vdb"');
        return xml.replace('</devices>', `${twin}</devices>`);
      });
    },
  },
  {
    name: 'a machine that runs on a cut chain',
    code: 'XML_INCONSISTENCY',
    prepare: async (site) => {
      await rename(site.image('vda'), site.image('base'));
      await createImage(site.image('vda'), {
        format: 'qcow2',
        sizeBytes: 2 ** 20,
        backing: site.image('base'),
      });
    },
  },
  {
    name: 'no room for the memory',
    code: 'NOT_ENOUGH_DISK_SPACE',
    prepare: (site) => redefine(site, (xml) => xml.replace(/<memory [^<]*</, "<memory unit='TiB'>1024<")),
  },
];

void t.test(
  'what mode "save" cannot do is refused before anything is touched, with what to do about it',
  async (t) => {
    for (const { name, code, prepare, request } of refusals) {
      const site = await siteFor(t);
      await prepare(site, t);
      await t.rejects(planOf(site, request), { name: 'SnapshotError', code, hint: /\w/ }, `${name}: ${code}`);
      await t.rejects(stat(join(site.directory, 'images', '.stillpoint')), { code: 'ENOENT' });
      site.world.machine('m').operation = undefined;
      site.world.machine('m').instance?.blockJobs.clear();
    }
  },
);

void t.test('a retain directory must be on the file system of the images, and open for QEMU', async (t) => {
  const site = await siteFor(t);
  if (!(await sameFileSystem(tmpdir(), site.directory))) {
    await t.rejects(planOf(site, { retainDirectory: join(tmpdir(), 'stillpoint-not-made') }), {
      code: 'RETAIN_DIRECTORY_ELSEWHERE',
    });
  }
  await t.rejects(planOf(site, { retainDirectory: '/proc/stillpoint' }), {
    code: 'RETAIN_DIRECTORY_ELSEWHERE',
  });
  const retainDirectory = join(site.directory, 'retained');
  const plan = await planOf(site, { retainDirectory });
  t.equal(
    plan.volumes[0]?.frozen,
    join(retainDirectory, plan.volumes[0]?.workDirectory.split('/').at(-1) ?? '', 'vda.frozen'),
  );
  await t.rejects(stat(retainDirectory), { code: 'ENOENT' }, 'a plan makes nothing');
});

void t.test('removable and read-only media stay out, with a warning for each', async (t) => {
  const site = await siteFor(t);
  withDevice("<disk type='file' device='cdrom'><target dev='hda'/><readonly/></disk>")(site);
  withDevice("<disk type='file' device='floppy'><target dev='fda'/></disk>")(site);
  const plan = await planOf(site);
  t.same(
    plan.volumes.map(({ target }) => target),
    ['vda'],
  );
  t.match(plan.warnings, [/^hda /, /^fda /]);
});

void t.test(
  'the memory state goes to the RAM disk if it fits with room to spare, else beside the images with a warning',
  async (t) => {
    const site = await siteFor(t);
    const fits = await planOf(site, { ramDisk: site.ramDisk });
    t.match(fits, { stateOnRamDisk: true, warnings: [] });
    t.ok(
      fits.stateFile.startsWith(site.ramDisk) && fits.workDirectories.includes(join(fits.stateFile, '..')),
    );
    t.equal(
      fits.stowedStateFile,
      join(fits.volumes[0]?.workDirectory ?? '?', 'vda.state'),
      'it leaves the RAM disk after the pause',
    );
    const crowded = await planOf(site, { ramDisk: site.ramDisk, ramDiskReservedBytes: 2 ** 50 });
    t.match(crowded, { stateOnRamDisk: false, warnings: [/has 0 B free/] }, 'others come first');
    // A file system without room of its own.
    const full = await planOf(site, { ramDisk: '/proc' });
    t.match(full, { stateOnRamDisk: false, warnings: [/RAM disk .* the pause is longer/] });
    t.ok(full.stateFile.startsWith(full.volumes[0]?.workDirectory ?? '?'));
  },
);

void t.test('a machine on a template is planned with it, and with symbolic links resolved', async (t) => {
  const site = await siteFor(t);
  const directory = join(site.directory, 'images');
  const template = join(directory, 'template.qcow2');
  await createImage(template, { format: 'qcow2', sizeBytes: 2 ** 20 });
  await mkdir(join(directory, 'real'));
  const real = join(directory, 'real', 'n.qcow2');
  await createImage(real, { format: 'qcow2', sizeBytes: 2 ** 20, backing: template });
  const image = join(directory, 'n-vda.qcow2');
  await symlink(real, image);
  const nvram = join(directory, 'vars.fd');
  await writeFile(nvram, 'vars');
  const uuid = await site.world.addMachine({
    name: 'n',
    volumes: [{ target: 'vda', path: image, exists: true }],
    firmware: `<nvram>${nvram}</nvram>`,
  });
  await site.world.startMachine('n');
  const plan = await planOf(site, {}, uuid);
  t.match(plan.volumes[0], {
    image,
    file: real,
    base: { path: template, format: 'qcow2' },
    chain: [image, template],
    workDirectory: /\/real\/\.stillpoint\//,
  });
  t.equal(plan.nvram?.source, nvram);
  t.notOk(JSON.stringify(plan).includes('simulated-secret'), 'no secret in what the journal keeps');
});
