import { mkdir, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Test } from 'tap';

/*
 * Disks as guests have them, as raw images: made by the host's mkfs and LVM without a device of the host, but for XFS,
 * which its kernel fills by a mount that nobody else sees.
 */

const mebibyte = 1024 * 1024;
const programMs = 60_000;
/** Sectors of 512 bytes that a partition begins after. */
const firstSector = 2048;

type Fill = (root: string) => Promise<void>;

/** A directory that `fill` has put files into, and room for images beside it. */
async function workPlace(test: Test, fill: Fill) {
  const directory = await mkdtemp(join(tmpdir(), 'sp-guest-'));
  test.teardown(() => rm(directory, { recursive: true, force: true }));
  const root = join(directory, 'root');
  await mkdir(root);
  await fill(root);
  return { root, at: (name: string) => join(directory, name) };
}

/** An XFS as a machine that runs has it: what was written last is in its log only. */
export async function xfsImage(test: Test, fill: Fill): Promise<Buffer> {
  const { root, at } = await workPlace(test, fill);
  const [image, mountPoint, copy] = [at('image'), at('mnt'), at('copy')];
  await mkdir(mountPoint);
  await (await open(image, 'wx')).close();
  await truncate(image, 32 * mebibyte);
  // mkfs.xfs refuses less than 300 MB else.
  await execa('mkfs.xfs', ['-q', '--unsupported', image], { timeout: programMs });
  const script = 'mount -o loop "$1" "$2" && cp -a "$3/." "$2/" && sync -f "$2" && cp "$1" "$4"; umount "$2"';
  const args = ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', image, mountPoint, root, copy];
  await execa('unshare', args, { timeout: programMs, stdin: 'ignore' });
  return readFile(copy);
}

/** A btrfs with the files in it. */
export async function btrfsImage(test: Test, fill: Fill): Promise<Buffer> {
  const { root, at } = await workPlace(test, fill);
  await execa('truncate', ['-s', '128M', at('image')]);
  await execa('mkfs.btrfs', ['-q', '--mixed', '--rootdir', root, at('image')], { timeout: programMs });
  return readFile(at('image'));
}

/**
 * A physical volume with one volume group, and in it one logical volume that holds this image.
 * @param name of group and volume: `guestvg/root`
 */
export async function lvmImage(test: Test, name: string, image: Buffer): Promise<Buffer> {
  const { at } = await workPlace(test, () => Promise.resolve());
  const [group = '', volume = ''] = name.split('/');
  const file = at('pv');
  await writeFile(file, '');
  await truncate(file, image.length + 16 * mebibyte);
  const { stdout: device } = await execa('losetup', ['--find', '--show', file], { timeout: programMs });
  try {
    // It sees this device only, keeps nothing, and makes no device.
    const config =
      'activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0 archive=0} global{event_activation=0} ' +
      'devices{use_devicesfile=0 scan_lvs=0 obtain_device_list_from_udev=0 external_device_info_source="none"}';
    const lvm = (command: string, ...args: readonly string[]) =>
      execa(command, ['-qq', '--config', config, '--devices', device, '--driverloaded', 'n', ...args], {
        env: { LVM_SYSTEM_DIR: at('lvm'), LVM_SUPPRESS_FD_WARNINGS: '1' },
        timeout: programMs,
        stdin: 'ignore',
      });
    await lvm('pvcreate', device);
    await lvm('vgcreate', group, device);
    await lvm('lvcreate', '-an', '-Zn', '-Wn', '-n', volume, '-L', `${image.length}b`, group);
  } finally {
    await execa('losetup', ['-d', device], { timeout: programMs });
  }
  const disk = await readFile(file);
  // The first extent is at 1 MiB, and the volume has the first ones.
  image.copy(disk, mebibyte);
  return disk;
}

/** A disk with an MBR of these partitions, in this order. */
export function partitioned(...partitions: readonly Buffer[]): Buffer {
  const mbr = Buffer.alloc(firstSector * 512);
  let sector = firstSector;
  for (const [index, { length }] of partitions.entries()) {
    const at = 446 + 16 * index;
    mbr.writeUInt8(0x83, at + 4);
    mbr.writeUInt32LE(sector, at + 8);
    mbr.writeUInt32LE(length / 512, at + 12);
    sector += length / 512;
  }
  mbr.writeUInt16LE(0xaa55, 510);
  return Buffer.concat([mbr, ...partitions]);
}
