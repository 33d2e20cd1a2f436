import t from 'tap';
import { errorRecord, StillpointError } from './errors.ts';

class TestError extends StillpointError<'REFUSED'> {}

void t.test('what is stored and sent of an error holds no secret that a message of libvirt quotes', (t) => {
  const quoted = `unsupported: <graphics type='vnc' passwd='hush'/>`;
  const expected = `unsupported: <graphics type='vnc' passwd='[secret]'/>`;
  t.same(errorRecord(new TestError(quoted, { code: 'REFUSED', hint: `mend ${quoted}`, retryable: true })), {
    code: 'REFUSED',
    message: expected,
    hint: `mend ${expected}`,
    retryable: true,
  });
  t.same(errorRecord(new TestError('plain', { code: 'REFUSED' })), {
    code: 'REFUSED',
    message: 'plain',
    retryable: false,
  });
  t.same(errorRecord(new Error(quoted)), { code: 'INTERNAL_ERROR', message: expected, retryable: false });
  t.end();
});
