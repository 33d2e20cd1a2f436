import t from 'tap';
import { StorageError } from '../errors.ts';
import { selectEntry } from './find.ts';

function hintFor(reference: string): string | undefined {
  try {
    selectEntry([], reference);
  } catch (error) {
    if (error instanceof StorageError && error.code === 'BACKUP_NOT_FOUND') return error.hint;
    throw error;
  }
  return undefined;
}

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
