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
