import t from 'tap';
import { StorageError } from '../errors.ts';
import { selectEntry } from './find.ts';

function hintFor(reference: string, entries: Parameters<typeof selectEntry>[0] = []): string | undefined {
  try {
    selectEntry(entries, reference);
  } catch (error) {
    if (error instanceof StorageError && error.code === 'BACKUP_NOT_FOUND') return error.hint;
    throw error;
  }
  return undefined;
}

void t.test('a machine where a backup is meant is told, with its newest backup', (t) => {
  const entry = {
    storage: 'local',
    directory: '/backup/web-1/20261101T000000.000Z',
    id: '00000001',
    machine: { name: 'web-1', uuid: 'u' },
    pointInTime: '2026-11-01T00:00:00.000Z',
    state: 'Active',
    problem: null,
    protected: false,
    protectedReason: null,
    manifest: null,
  } as const;
  t.match(hintFor('web-1', [entry]), /^web-1 is a machine; .* web-1@latest: /);
  t.match(hintFor('u', [entry]), /^u is a machine; .* u@latest: /);
  t.equal(hintFor('web-2', [entry]), 'stillpoint list');
  t.end();
});

void t.test('what is no instant after the @ is told, with the forms that are', (t) => {
  t.match(
    hintFor('web-1@yesterday'),
    /^"yesterday" is no instant: web-1@latest, or web-1@ .*20261120T151523/,
  );
  t.match(hintFor('a@b@2026-13-40'), /^"2026-13-40" is no instant: a@b@latest/);
  for (const known of ['web-1@latest', 'web-1@20261120T151523.123Z', 'web-1@2026-11-20T15:15:23Z', 'web-1'])
    t.equal(hintFor(known), 'stillpoint list', known);
  t.end();
});
