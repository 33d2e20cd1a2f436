import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, rename, symlink } from 'node:fs/promises';

import { execa } from 'execa';
import t, { type Test } from 'tap';

import { readImageInfo } from '../../common/qemuImage.ts';
import { removeSharedImages, Site } from '../../test/sim/site.ts';
import { planLive } from './planLive.ts';
import { planRead } from './planRead.ts';
import { planSave } from './preflight.ts';

t.teardown(removeSharedImages);

type Mode = 'save' | 'live' | 'disk' | 'offline';
const modes: readonly Mode[] = ['save', 'live', 'disk', 'offline'];

/** What becomes of it in a mode: it is taken, left out with a note, or refused with a code. */
type Answer = string;

interface Kind {
  /** The row of docs/SUPPORT.md. */
  readonly row: string;
  readonly answers: Readonly<Record<Mode, Answer>>;
  readonly prepare: (site: Site, test: Test) => unknown;
}

function every(answer: Answer): Kind['answers'] {
  return { save: answer, live: answer, disk: answer, offline: answer };
}

function readable(refused: Answer): Kind['answers'] {
  return { save: refused, live: refused, disk: 'taken', offline: 'taken' };
}

/** Changes what the running machine and its persistent definition say. */
function redefine(site: Site, change: (xml: string) => string): void {
  const machine = site.world.machine('m');
  const { instance } = machine;
  if (machine.persistent === undefined || instance === undefined) throw new Error('the machine does not run');
  machine.persistent = change(machine.persistent);
  machine.instance = { ...instance, definition: change(instance.definition) };
}

function inDisk(from: string | RegExp, to: string): Kind['prepare'] {
  return (site) => redefine(site, (xml) => xml.replace(from, to));
}

function disk(xml: string): Kind['prepare'] {
  return (site) => redefine(site, (definition) => definition.replace('</devices>', `${xml}</devices>`));
}

/** Makes the image of the machine anew. */
function image(...options: readonly string[]): Kind['prepare'] {
  return async (site) => {
    const args = ['create', '-q', '-f', 'qcow2', ...options, site.image('vda'), '1M'];
    await execa('qemu-img', args, { timeout: 30_000 });
  };
}

/** Sets a bit of the incompatible features in a qcow2 header (byte 72 to 79, big-endian). */
async function setIncompatible(path: string, bit: number): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(Buffer.from([1 << bit]), 0, 1, 79);
  await file.close();
}

const raw = "<driver name='qemu' type='raw'/><target dev='vdx' bus='virtio'/>";

const kinds: readonly Kind[] = [
  { row: 'qcow2 file', answers: every('taken'), prepare: () => undefined },
  {
    row: 'qcow2 that names its backing file by a relative path',
    answers: readable('RELATIVE_BACKING'),
    prepare: async (site) => {
      await rename(site.image('vda'), site.image('base'));
      await image('-F', 'qcow2', '-b', 'm-base.qcow2')(site, t);
    },
  },
  {
    row: 'raw file',
    answers: { ...every('taken'), save: 'VOLUME_RAW' },
    prepare: inDisk('type="qcow2"', 'type="raw"'),
  },
  {
    row: 'image reached through a symbolic link',
    answers: every('taken'),
    prepare: async (site) => {
      await rename(site.image('vda'), site.image('real'));
      await symlink(site.image('real'), site.image('vda'));
    },
  },
  {
    row: 'cdrom, floppy, read-only disk, empty drive',
    answers: every('left out'),
    prepare: (site, test) => {
      disk("<disk type='file' device='cdrom'><target dev='hda'/><readonly/></disk>")(site, test);
      disk("<disk type='file' device='floppy'><source file='/a'/><target dev='fda'/></disk>")(site, test);
      disk(`<disk type='file' device='disk'><source file='/b'/><readonly/>${raw}</disk>`)(site, test);
    },
  },
  { row: 'shareable', answers: every('VOLUME_SHARED'), prepare: inDisk('</disk>', '<shareable/></disk>') },
  {
    row: 'transient',
    answers: every('VOLUME_UNSUPPORTED'),
    prepare: inDisk('</disk>', '<transient/></disk>'),
  },
  {
    row: 'encrypted (LUKS), qcow2 or raw',
    answers: { ...every('VOLUME_ENCRYPTED'), offline: 'taken' },
    prepare: async (site, test) => {
      const key = ['--object', 'secret,id=s,data=secret'];
      await image(...key, '-o', 'encrypt.format=aes,encrypt.key-secret=s')(site, test);
    },
  },
  {
    row: 'block device (LVM and the like), raw or qcow2',
    answers: {
      ...every('VOLUME_UNSUPPORTED'),
      disk: 'MISSING_NECESSARY_FILES',
      offline: 'MISSING_NECESSARY_FILES',
    },
    prepare: disk(`<disk type='block' device='disk'><source dev='/dev/no-such-device'/>${raw}</disk>`),
  },
  {
    row: 'storage pool volume',
    answers: {
      ...every('VOLUME_UNSUPPORTED'),
      disk: 'MISSING_NECESSARY_FILES',
      offline: 'MISSING_NECESSARY_FILES',
    },
    prepare: disk(`<disk type='volume' device='disk'><source pool='p' volume='gone'/>${raw}</disk>`),
  },
  {
    row: 'network disk',
    answers: { ...every('VOLUME_UNSUPPORTED'), disk: 'taken' },
    prepare: disk(`<disk type='network' device='disk'><source protocol='rbd' name='a/b'/>${raw}</disk>`),
  },
  ...[
    "<disk type='block' device='lun'><source dev='/dev/x'/>",
    "<disk type='vhostuser' device='disk'><source type='unix' path='/x'/>",
    "<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'/>",
  ].map((start) => ({
    row: 'direct-attached (`lun`), vhost-user, NVMe',
    answers: every('VOLUME_UNSUPPORTED'),
    prepare: disk(`${start}${raw}</disk>`),
  })),
  { row: 'qcow2 version 2 (`compat=0.10`)', answers: every('taken'), prepare: image('-o', 'compat=0.10') },
  {
    row: 'subclusters (`extended_l2`)',
    answers: { ...every('taken'), save: 'VOLUME_UNSUPPORTED' },
    prepare: image('-o', 'extended_l2=on'),
  },
  {
    row: 'external data file',
    answers: readable('VOLUME_UNSUPPORTED'),
    prepare: (site, test) => image('-o', `data_file=${site.image('data')}`)(site, test),
  },
  {
    row: 'marked corrupt',
    answers: every('CORRUPT_DISK_IMAGE_FOUND'),
    prepare: (site) => setIncompatible(site.image('vda'), 1),
  },
  {
    row: 'open for writing by another process',
    answers: { ...every('IMAGE_LOCKED'), disk: 'taken' },
    prepare: async (site, test) => {
      const args = ['-c', 'exec 3<>"$1"; echo open; exec sleep 60', 'sh', site.image('vda')];
      const holder = spawn('sh', args, { stdio: ['ignore', 'pipe', 'ignore'] });
      test.teardown(() => holder.kill('SIGKILL'));
      await once(holder.stdout, 'data');
    },
  },
];

/** Plans a backup of the machine, and says what it came to. */
async function answerOf(site: Site, mode: Mode): Promise<Answer> {
  const hypervisor = site.world.connect();
  const request = {
    jobId: '01a1fa1b-a048-702f-a832-3f1deebf16d6',
    machineUuid: site.uuid,
    modeReason: '',
    retainDirectory: null,
    runDirectory: site.runDirectory,
  };
  const ram = { ramDisk: null, ramDiskReservedBytes: 0 };
  const plan =
    mode === 'save'
      ? planSave(hypervisor, { ...request, ...ram, checkpoint: null })
      : mode === 'live'
        ? planLive(hypervisor, {
            ...request,
            ...ram,
            memoryFactor: 1,
            whenNotConverging: 'fail',
          })
        : planRead(hypervisor, { ...request, mode });
  try {
    const { warnings } = await plan;
    return warnings.some((warning) => warning.includes('is not part of the backup')) ? 'left out' : 'taken';
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error) || !('hint' in error)) throw error;
    if (typeof error.hint !== 'string' || error.hint === '')
      throw new Error('there is no hint', { cause: error });
    return String(error.code);
  }
}

void t.test('every kind of volume has its answer in every mode', async (t) => {
  for (const { row, answers, prepare } of kinds) {
    await t.test(row, async (t) => {
      const site = await Site.create({ targets: ['vda'] });
      try {
        await prepare(site, t);
        const found: Partial<Record<Mode, Answer>> = {};
        for (const mode of modes) {
          if (mode === 'offline') await site.world.connect().powerOff(site.uuid);
          found[mode] = await answerOf(site, mode);
        }
        t.same(found, answers);
      } finally {
        await site[Symbol.asyncDispose]();
      }
    });
  }
});

void t.test('an image that a definition calls encrypted is never read through QEMU', async (t) => {
  const site = await Site.create({ targets: ['vda'] });
  t.teardown(() => site[Symbol.asyncDispose]());
  inDisk('</disk>', "<encryption format='luks'/></disk>")(site, t);
  for (const mode of ['save', 'live', 'disk'] as const)
    t.equal(await answerOf(site, mode), 'VOLUME_ENCRYPTED');
});

void t.test(
  'cluster size, refcount width and lazy refcounts are kept in the image of mode "save"',
  async (t) => {
    const site = await Site.create({ targets: ['vda'] });
    t.teardown(() => site[Symbol.asyncDispose]());
    await image('-o', 'cluster_size=128k,refcount_bits=32,lazy_refcounts=on')(site, t);
    const { layout } = await readImageInfo(site.image('vda'), 'qcow2');
    t.same(layout, ['cluster_size=131072', 'refcount_bits=32', 'lazy_refcounts=on']);
    await backUp(t, site);
    t.same((await readImageInfo(site.image('vda'), 'qcow2', { inUse: true })).layout, layout);
  },
);

void t.test('bitmaps of others do not get into the image of mode "save"', async (t) => {
  const site = await Site.create({ targets: ['vda'] });
  t.teardown(() => site[Symbol.asyncDispose]());
  await execa('qemu-img', ['bitmap', '--add', site.image('vda'), 'theirs'], { timeout: 30_000 });
  await backUp(t, site);
  const { bitmaps } = await readImageInfo(site.image('vda'), 'qcow2', { inUse: true });
  t.notOk(bitmaps.includes('theirs'), 'ours may be there');
});

async function backUp(test: Test, site: Site): Promise<void> {
  const { agent } = site.openAgent();
  const job = await agent.createBackup({ machine: 'm', mode: 'save' });
  test.match(await agent.run(job), { state: 'finished' });
}
