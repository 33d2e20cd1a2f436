import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';

import t from 'tap';

/*
 * What docs/SUPPORT.md promises of machines and volumes, and the tests that would notice if it were not so. A row
 * without a test, and a test that is not there, fail here.
 */

const root = resolve(import.meta.dirname, '..');

/** A test, by its file and a part of its name. */
type TestName = readonly [file: string, name: string];

const kinds = 'agent/snapshot/volumeKinds.test.ts';
const preflight = 'agent/snapshot/preflight.test.ts';
const consistency = 'test/e2e/consistency.test.ts';
const refusals = 'test/e2e/refusals.test.ts';
const reading = 'test/e2e/reading.test.ts';
const volumes = 'test/e2e/volumes.test.ts';
const tpm = 'test/e2e/tpm.test.ts';
const odd = 'subclusters over a template, a relative backing file, internal snapshots, a data file';

const machineRows: Readonly<Record<string, readonly TestName[]>> = {
  running: [
    [consistency, 'a backup under continuous writing to two volumes'],
    [reading, 'mode "disk" reads a running machine at one instant, without a pause'],
  ],
  'suspended by its owner (`virsh suspend`)': [
    [consistency, 'a backup of a machine that its owner has suspended'],
    [reading, 'a machine that its owner has suspended stays suspended'],
  ],
  off: [
    [refusals, 'a machine that is off stays off'],
    [reading, 'mode "offline" reads the images of a machine that is off'],
    [reading, 'a managed save image stays valid'],
  ],
  'in another state (crashed, saving, paused on an I/O error, …)': [
    [preflight, 'a machine that is paused on an I/O error'],
    [preflight, 'a machine that libvirt is saving'],
  ],
  'transient (not defined)': [[refusals, 'a transient machine']],
  'with libvirt snapshots, or an image with internal snapshots': [
    [refusals, 'an image with internal snapshots'],
    [refusals, 'a machine with libvirt snapshots, internal or external'],
    [reading, odd],
  ],
  'with libvirt checkpoints of others': [[refusals, 'a machine with checkpoints']],
  'host devices (`hostdev`, SR-IOV interfaces, vhost-user, virtiofs, shared memory, SEV)': [
    [preflight, 'a passed-through device'],
    [refusals, 'devices of the host, whose state no save holds, are refused'],
  ],
  'TPM that libvirt emulates (swtpm)': [[tpm, 'a TPM that libvirt emulates']],
  'TPM of another kind (passed through, external)': [
    [preflight, 'a TPM of the host'],
    [tpm, 'one of another kind is refused'],
  ],
  'kernel, initial RAM disk, device tree, firmware that are files': [
    [
      'agent/snapshot/extras.test.ts',
      'what belongs to a machine beside its volumes is stored with each backup',
    ],
    ['agent/restore/planExtras.test.ts', 'a kernel that is gone comes back with its machine'],
  ],
  'networks and storage pools that it uses': [
    [
      'agent/snapshot/extras.test.ts',
      'what belongs to a machine beside its volumes is stored with each backup',
    ],
    [volumes, 'block devices, a pool volume and a network disk are read by mode "disk"'],
  ],
  'UEFI with NVRAM': [['test/e2e/restore.test.ts', 'a machine with UEFI comes back with its NVRAM']],
  'with a guest agent': [
    ['test/e2e/freeze.test.ts', 'the guest is frozen at T1 by its agent, and thawed whatever happens'],
  ],
  'whose owner works on its images while mode `save` has not merged them yet (`snapshot-create-as`, `blockcommit`)':
    [
      [
        'test/e2e/crashOwner.test.ts',
        'virsh snapshot-create-as and blockcommit before the merge: the job ends',
      ],
      ['agent/backup/owner.sim.test.ts', 'a snapshot that he keeps stays whole, with all that is below it'],
    ],
  'that is undefined, destroyed or shut down while it is backed up': [
    [
      'test/e2e/crashOwner.test.ts',
      'virsh undefine while it is read: the backup is made, and the machine runs on',
    ],
    [
      'agent/backup/owner.sim.test.ts',
      'undefine while a machine is read ends nothing: it runs on as a transient one',
    ],
  ],
  autostart: [['test/sim/crashes.test.ts', 'after a crash of the host what has autostart is booted cold']],
  'several machines that belong together': [
    [
      'test/e2e/together.test.ts',
      'what one has written in answer to the other is in both backups, or in none',
    ],
    ['test/e2e/together.test.ts', 'also with their memory, where that is asked for'],
  ],
  'templates: machines that are never started': [
    [reading, 'mode "offline" reads the images of a machine that is off'],
  ],
  'templates: images that no machine runs': [
    [reading, 'the template that it stands on is stored while it runs, and restored as it was'],
  ],
};

const volumeRows: Readonly<Record<string, readonly TestName[]>> = {
  'qcow2 file': [[consistency, 'a backup under continuous writing to two volumes']],
  'qcow2 file over a backing chain (template, shared base)': [
    [consistency, 'a backup of a machine on a shared base'],
    ['test/e2e/liveKinds.test.ts', 'mode "live" with a template, a symbolic link, two file systems and UEFI'],
  ],
  'qcow2 that names its backing file by a relative path': [
    [refusals, 'an image that names its backing file relatively'],
    [reading, odd],
  ],
  'raw file': [
    [refusals, 'a raw image'],
    [reading, 'mode "disk" reads a running machine at one instant, without a pause'],
  ],
  'several volumes, also on several file systems': [
    [consistency, 'a backup of a machine whose images are spread'],
  ],
  'image reached through a symbolic link': [
    [consistency, 'over two file systems and a symbolic link is whole'],
  ],
  'cdrom, floppy, read-only disk, empty drive': [
    [refusals, 'removable and read-only media are left out with a note, and stay'],
  ],
  shareable: [[refusals, 'an image that is shared with other machines']],
  'encrypted (LUKS), qcow2 or raw': [
    [refusals, 'an encrypted image'],
    [volumes, 'an encrypted image is stored encrypted while the machine is off, and never decrypted'],
  ],
  transient: [[kinds, "row: 'transient'"]],
  'block device (LVM and the like), raw or qcow2': [
    [volumes, 'block devices, a pool volume and a network disk are read by mode "disk"'],
    [volumes, 'mode "offline" reads devices and pool volumes, and no network disk'],
  ],
  'storage pool volume': [[volumes, 'a pool volume is restored in place, into its pool']],
  'network disk': [[volumes, 'block devices, a pool volume and a network disk are read by mode "disk"']],
  'direct-attached (`lun`), vhost-user, NVMe': [[kinds, "row: 'direct-attached (`lun`), vhost-user, NVMe'"]],
  'qcow2 version 2 (`compat=0.10`)': [
    [volumes, 'a qcow2 image on a device keeps bitmaps, a version 2 image and the others do not'],
  ],
  'cluster size, refcount width, lazy refcounts': [
    [kinds, 'cluster size, refcount width and lazy refcounts are kept in the image of mode "save"'],
  ],
  'subclusters (`extended_l2`)': [
    [refusals, 'an image with subclusters, as long as QEMU does not survive its merge'],
    [reading, odd],
  ],
  'persistent bitmaps of others': [[kinds, 'bitmaps of others do not get into the image of mode "save"']],
  'external data file': [
    [kinds, "row: 'external data file'"],
    [reading, odd],
  ],
  'with more than 7 TiB of data': [
    [
      'agent/retain/retain.test.ts',
      'more of a volume than a storage can keep is refused before anything is touched',
    ],
    [
      'storage/directory/qcow2Writer.test.ts',
      'a volume with more data than the list of its digests can hold is refused before it is read',
    ],
  ],
  'marked corrupt': [[kinds, "row: 'marked corrupt'"]],
  'open for writing by another process': [[refusals, 'an image that another process has open for writing']],
  'with a running block job': [
    [refusals, 'a volume that a block job works on is refused until that has ended'],
  ],
};

/** First cells of the table under a heading. */
function rowsUnder(heading: string, text: string): readonly string[] {
  const section = text.split(/^## /m).find((part) => part.startsWith(`${heading}\n`)) ?? '';
  const lines = section.split('\n').filter((line) => line.startsWith('| '));
  return lines.slice(1).map((line) => line.slice(2, line.indexOf(' | ')));
}

void t.test('every row of docs/SUPPORT.md has its test', async (t) => {
  const text = await readFile(resolve(root, 'docs/SUPPORT.md'), 'utf8');
  for (const [heading, known] of [
    ['Machines', machineRows],
    ['Volumes', volumeRows],
  ] as const) {
    t.same(
      rowsUnder(heading, text).toSorted(),
      Object.keys(known).toSorted(),
      `${heading}: a new or changed row needs its tests in test/supportTable.test.ts`,
    );
    for (const [row, tests] of Object.entries(known)) {
      t.ok(tests.length > 0, `${row} has a test`);
      for (const [file, name] of tests)
        t.ok((await readFile(resolve(root, file), 'utf8')).includes(name), `${row}: ${file}, "${name}"`);
    }
  }
});
