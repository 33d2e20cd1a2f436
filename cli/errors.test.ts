import t from 'tap';
import { errorRecord } from '../common/errors.ts';
import { asTold } from './errors.ts';
import { exitCodeOf } from './exitCodes.ts';

void t.test('what a signal has cut short ends as interrupted, and everything else as what it is', (t) => {
  const aborted = AbortSignal.abort();
  const told = errorRecord(asTold(aborted.reason));
  t.match(told, { code: 'INTERRUPTED' });
  t.equal(exitCodeOf(told.code), 130);
  for (const other of [new Error('AbortError'), new DOMException('late', 'TimeoutError'), 'a text'])
    t.equal(asTold(other), other);
  t.end();
});

void t.test('who may not do something is told so, and how', (t) => {
  for (const code of ['EACCES', 'EPERM']) {
    const denied = Object.assign(new Error(`${code}: lstat '/var/lib/stillpoint/journal.sqlite'`), { code });
    const told = errorRecord(asTold(denied));
    t.match(told, { code: 'ACCESS_DENIED', message: /journal\.sqlite/, hint: /as root/ });
  }
  t.end();
});
