import { mkdir, realpath, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { temporaryDirectory } from '../../test/tls/authority.ts';
import type { Caller } from './caller.ts';
import { type PlacedFiles, requireDirectoryRight, requireRestoreRight } from './restoreRights.ts';

const controller: Caller = { kind: 'controller', name: 'c1' };
const nothing = { directories: [], inPlace: false };

function plan(image: string, more: Partial<PlacedFiles> = {}): PlacedFiles {
  const volumes = [{ image, file: image, existed: false }];
  return { kind: 'new-machine', machine: { name: 'n' }, volumes, nvram: null, extras: [], ...more };
}

async function directories(t: Test): Promise<{ readonly inside: string; readonly outside: string }> {
  const root = await realpath(await temporaryDirectory(t, 'rights'));
  const [inside, outside] = [join(root, 'images'), join(root, 'other')];
  await Promise.all([mkdir(inside), mkdir(outside)]);
  return { inside, outside };
}

void t.test('nobody but root may restore anything unless the configuration says so', async (t) => {
  await t.rejects(requireRestoreRight(plan('/srv/a'), controller, nothing), {
    code: 'RESTORE_DENIED',
    message: /c1 may not write to \/srv\/a/,
    hint: /delegatedRestore: { directories: \[\/srv\]/,
  });
  const member: Caller = { kind: 'socket', name: 'uid 1000', isPrivileged: false };
  await t.rejects(requireRestoreRight(plan('/srv/a'), member, nothing), { code: 'RESTORE_DENIED' });
  const root: Caller = { kind: 'socket', name: 'uid 0', isPrivileged: true };
  await requireRestoreRight(plan('/srv/a', { kind: 'in-place' }), root, nothing);
});

void t.test('everything that is put in place must lie in a directory that is named', async (t) => {
  const { inside, outside } = await directories(t);
  const rule = { directories: [inside], inPlace: false };
  await requireRestoreRight(plan(join(inside, 'a')), controller, rule);
  await requireRestoreRight(plan(join(inside, 'new', 'a')), controller, rule);
  const elsewhere = { path: join(outside, 'n_VARS.fd'), existed: false };
  const wrong: readonly (readonly [string, PlacedFiles])[] = [
    ['another directory', plan(join(outside, 'a'))],
    ['the directory itself', plan(inside)],
    ['one whose name begins alike', plan(`${inside}-2/a`)],
    ['a way out by dots', plan(`${inside}/../other/a`)],
    ['NVRAM', plan(join(inside, 'a'), { nvram: elsewhere })],
    ['another file', plan(join(inside, 'a'), { extras: [elsewhere] })],
  ];
  for (const [name, one] of wrong)
    await t.rejects(requireRestoreRight(one, controller, rule), { code: 'RESTORE_DENIED' }, name);
});

void t.test('a directory is asked for before anything in it is looked at', async (t) => {
  const { inside, outside } = await directories(t);
  const file = join(outside, 'file');
  await writeFile(file, '');
  await symlink(join(inside, 'circle'), join(inside, 'circle'));
  await symlink(outside, join(inside, 'link'));
  const rule = { directories: [inside], inPlace: false };
  const root: Caller = { kind: 'socket', name: 'uid 0', isPrivileged: true };
  for (const directory of [inside, join(inside, 'new')])
    await requireDirectoryRight(directory, controller, rule);
  for (const directory of [outside, file, join(file, 'a'), join(inside, 'link'), `${inside}/../other`, '/']) {
    await t.rejects(
      requireDirectoryRight(directory, controller, rule),
      { code: 'RESTORE_DENIED' },
      directory,
    );
    await requireDirectoryRight(directory, root, rule);
  }
  const long = join(outside, 'x'.repeat(300), 'a');
  await t.rejects(requireDirectoryRight(long, controller, rule), { code: 'RESTORE_DENIED' });
  await requireDirectoryRight(join(inside, 'circle', 'a'), controller, rule);
  await t.rejects(requireRestoreRight(plan(join(file, 'a')), controller, rule), { code: 'RESTORE_DENIED' });
});

void t.test('it counts where files really are', async (t) => {
  const { inside, outside } = await directories(t);
  await symlink(outside, join(inside, 'link'));
  const rule = { directories: [inside], inPlace: false };
  const denied = { code: 'RESTORE_DENIED' };
  await t.rejects(requireRestoreRight(plan(join(inside, 'link', 'a')), controller, rule), denied);
  const byLink = plan(join(inside, 'a'), {
    volumes: [{ image: join(inside, 'a'), file: join(outside, 'a'), existed: false }],
  });
  await t.rejects(requireRestoreRight(byLink, controller, rule), denied);
  const linked = { directories: [join(inside, 'link')], inPlace: false };
  await requireRestoreRight(plan(join(outside, 'a')), controller, linked);
});

void t.test('what is there is replaced only where that is allowed too', async (t) => {
  const { inside } = await directories(t);
  const image = join(inside, 'a');
  const over = plan(image, { kind: 'in-place', machine: { name: 'm' } });
  const file = plan(image, { kind: 'files', volumes: [{ image, file: image, existed: true }] });
  const rule = { directories: [inside], inPlace: false };
  const hint = /inPlace: true/;
  await t.rejects(requireRestoreRight(over, controller, rule), { message: /may not replace m/, hint });
  await t.rejects(requireRestoreRight(file, controller, rule), { message: /may not replace .*a on/, hint });
  for (const one of [over, file]) await requireRestoreRight(one, controller, { ...rule, inPlace: true });
  await t.rejects(
    requireRestoreRight(plan('/srv/a', { kind: 'in-place' }), controller, { ...rule, inPlace: true }),
    { code: 'RESTORE_DENIED' },
    'and only there',
  );
});
