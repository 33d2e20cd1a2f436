import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import {
  copySecurityLabel,
  dropLibvirtLabels,
  getXattr,
  listXattrs,
  rememberedOwner,
  removeXattr,
  setXattr,
} from './xattr.ts';

const needsRoot = { skip: process.getuid?.() !== 0 && 'needs root' };

void t.test('the owner that libvirt remembers is read, and its marks are taken off', needsRoot, async (t) => {
  const path = join(t.testdir({ image: '' }), 'image');
  t.equal(await rememberedOwner(path), null);
  await setXattr(path, 'trusted.libvirt.security.dac', Buffer.from('+64055:+107'));
  await setXattr(path, 'trusted.libvirt.security.ref_dac', Buffer.from('1'));
  await setXattr(path, 'user.mine', Buffer.from('kept'));
  t.same(await rememberedOwner(path), { uid: 64055, gid: 107 });
  t.same([...(await dropLibvirtLabels(path))].toSorted(), [
    'trusted.libvirt.security.dac',
    'trusted.libvirt.security.ref_dac',
  ]);
  t.same(await listXattrs(path), ['user.mine']);
  await setXattr(path, 'trusted.libvirt.security.dac', Buffer.from('somebody'));
  await t.rejects(rememberedOwner(path), /not libvirt/);
});

void t.test('access lists go with a copy', needsRoot, async (t) => {
  const directory = t.testdir({ from: '', to: '' });
  // version 2: user rwx, user 1000 rwx, group ---, mask rwx, other ---
  const list = Buffer.from(
    '02000000' +
      '01000700ffffffff' +
      '02000700e8030000' +
      '04000000ffffffff' +
      '10000700ffffffff' +
      '20000000ffffffff',
    'hex',
  );
  const [from, to] = [join(directory, 'from'), join(directory, 'to')];
  await setXattr(from, 'system.posix_acl_access', list);
  t.same(await copySecurityLabel(from, to), []);
  t.same(await getXattr(to, 'system.posix_acl_access'), list);
});

void t.test('no attribute and no such file are told apart, and links are not followed', async (t) => {
  const directory = t.testdir({ file: '' });
  const file = join(directory, 'file');
  t.equal(await getXattr(file, 'user.none'), null);
  t.equal(await removeXattr(file, 'user.none'), false);
  t.equal(await getXattr('/proc/self/status', 'user.none'), null);
  await t.rejects(getXattr(join(directory, 'missing'), 'user.none'), { code: 'ENOENT' });
  await setXattr(file, 'user.mine', Buffer.from('x'));
  await symlink(file, join(directory, 'link'));
  t.same(await listXattrs(join(directory, 'link')), []);
});
