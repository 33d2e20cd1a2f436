import * as fc from 'fast-check';
import t from 'tap';
import { artifactFileName } from '../manifest.ts';
import {
  artifactNames,
  assertArtifactName,
  decodeMachineName,
  encodeMachineName,
  jobIdOfPartial,
  machineDirectoryWithUuid,
  partialDirectoryName,
} from './names.ts';

const uuid = '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01';

void t.test('every machine name becomes one harmless directory name, and is read back from it', (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  fc.assert(
    fc.property(fc.string({ unit: 'binary', minLength: 1, maxLength: 12 }), (name) => {
      const encoded = encodeMachineName(name);
      return (
        /^[A-Za-z0-9._%-]+$/.test(encoded) &&
        encoded !== '.' &&
        encoded !== '..' &&
        decodeMachineName(encoded) === name &&
        decodeMachineName(machineDirectoryWithUuid(name, uuid)) === name
      );
    }),
    { seed },
  );
  t.equal(encodeMachineName('vm-001'), 'vm-001');
  t.equal(encodeMachineName('..'), '%2E%2E');
  t.equal(encodeMachineName('a/b~é'), 'a%2Fb%7E%C3%A9');
  t.end();
});

void t.test('file names stay valid however long and strange the machine name is', (t) => {
  for (const name of ['x'.repeat(500), '/'.repeat(300), '虚拟机'.repeat(60), '.', '..', '-rf', 'a b']) {
    const names = artifactNames(name, '20261120T151523.123Z');
    for (const file of [names.volume('v'.repeat(64), 'qcow2'), names.memory, names.definition, names.nvram])
      t.ok(artifactFileName.safeParse(file).success, file);
    t.ok(Buffer.byteLength(machineDirectoryWithUuid(name, uuid)) <= 255);
  }
  t.equal(
    artifactNames('vm-001', '20261120T151523.123Z').volume('vda', 'qcow2'),
    'vm-001-vda.qcow2.20261120T151523.123Z',
  );
  t.end();
});

void t.test('hostile names are refused', (t) => {
  const hostile = [
    '../x',
    '/etc/passwd',
    'a\0b',
    'x'.repeat(300),
    '',
    '.',
    '..',
    'a/b',
    'manifest.json',
    'a\nb',
    '.x.tmp',
  ];
  for (const name of hostile)
    t.throws(() => assertArtifactName(name), { code: 'NAME_INVALID' }, JSON.stringify(name));
  for (const jobId of ['', '../x', 'a/b', 'x'.repeat(65)]) {
    t.throws(() => partialDirectoryName(jobId), { code: 'NAME_INVALID' });
    t.equal(jobIdOfPartial(`.partial-${jobId}`), null);
  }
  t.equal(jobIdOfPartial(partialDirectoryName(uuid)), uuid);
  t.end();
});
