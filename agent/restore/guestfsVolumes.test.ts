import t from 'tap';
import { parseFileSystems } from './guestfsVolumes.ts';

void t.test('file systems have the names of volumes and partitions, and what chooses them', (t) => {
  const answer = [
    '/dev/sda1: xfs',
    '/dev/sda2: swap',
    '/dev/sda3: btrfs',
    'btrfsvol:/dev/sda3/@home: btrfs',
    'btrfsvol:/dev/sda3/a: b/c: btrfs',
    '/dev/sdb: ntfs',
    '/dev/vg.1/root-lv: ext4',
    '/dev/md127: xfs',
    '/dev/sda5: unknown',
    '',
  ].join('\n');
  t.same(
    parseFileSystems(answer, ['vda', 'vdb']).map(({ name, choice, kind, on }) => [name, choice, kind, on]),
    [
      ['vda partition 1', '1', 'xfs', { target: 'vda', partition: 1 }],
      ['vda partition 3', '3', 'btrfs', { target: 'vda', partition: 3 }],
      ['vda partition 3 subvolume @home', '3:@home', 'btrfs', null],
      ['vda partition 3 subvolume a: b/c', '3:a: b/c', 'btrfs', null],
      ['vdb', '0', 'ntfs', { target: 'vdb', partition: 0 }],
      ['volume vg.1/root-lv', 'vg.1/root-lv', 'ext4', null],
      ['volume md127', 'md127', 'xfs', null],
    ],
  );
  t.end();
});

void t.test('what is no file system of a volume is left out, and there is an end of them', (t) => {
  const strange = [
    '/etc/passwd: ext4',
    '/dev/../etc: ext4',
    '/dev/a b/c: ext4',
    '/dev/x$(id)/y: ext4',
    'nothing',
  ];
  t.same(parseFileSystems(strange.join('\n'), ['vda']), []);
  const many = Array.from({ length: 1000 }, (_, index) => `/dev/vg/v${index}: xfs`).join('\n');
  t.equal(parseFileSystems(many, ['vda']).length, 200);
  t.end();
});
