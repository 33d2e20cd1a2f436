import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { isUuid } from '../../common/ids.ts';
import { temporaryDirectory } from '../../test/tls/authority.ts';
import { readHostId } from './hostId.ts';

void t.test('a host has one UUID, which does not show its machine-id', async (t) => {
  const file = join(await temporaryDirectory(t, 'machine-id'), 'machine-id');
  await writeFile(file, '0123456789abcdef0123456789abcdef\n');
  const id = await readHostId(file);
  t.ok(isUuid(id));
  t.equal(await readHostId(file), id);
  t.notMatch(id.replaceAll('-', ''), '0123456789abcdef');
  await writeFile(file, '1123456789abcdef0123456789abcdef\n');
  t.not(await readHostId(file), id);
});

void t.test('a host without a machine-id is told how to get one', async (t) => {
  const directory = await temporaryDirectory(t, 'machine-id');
  const error = { code: 'HOST_ID_MISSING', hint: /systemd-machine-id-setup/ };
  await t.rejects(readHostId(join(directory, 'none')), error);
  await writeFile(join(directory, 'new'), 'uninitialized\n');
  await t.rejects(readHostId(join(directory, 'new')), error);
});
