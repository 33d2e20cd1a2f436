import t from 'tap';

import { errorOf } from './errorTable.ts';

const fromQemu = 10;
const fromRpc = 7;

void t.test('errors are told apart by number, origin and errno, whatever the text says', async (t) => {
  const cases = [
    { code: 42, domain: fromQemu, errno: 0, expected: 'MACHINE_NOT_FOUND' },
    { code: 55, domain: fromQemu, errno: 0, expected: 'MACHINE_STATE_INVALID' },
    { code: 68, domain: fromQemu, errno: 0, expected: 'MACHINE_LOCKED' },
    { code: 78, domain: fromQemu, errno: 0, expected: 'OPERATION_ABORTED' },
    { code: 84, domain: fromQemu, errno: 0, expected: 'OPERATION_UNSUPPORTED' },
    { code: 27, domain: fromQemu, errno: 0, expected: 'DEFINITION_INVALID' },
    { code: 38, domain: fromQemu, errno: 28, expected: 'NO_SPACE' },
    { code: 38, domain: fromRpc, errno: 13, expected: 'ACCESS_DENIED' },
    { code: 38, domain: fromRpc, errno: 2, expected: 'HYPERVISOR_UNREACHABLE' },
    { code: 38, domain: fromQemu, errno: 2, expected: 'OPERATION_FAILED' },
    { code: 1, domain: fromRpc, errno: 0, expected: 'HYPERVISOR_UNREACHABLE' },
    { code: 1, domain: fromQemu, errno: 0, expected: 'OPERATION_FAILED' },
    { code: 9999, domain: fromQemu, errno: 0, expected: 'OPERATION_FAILED' },
  ];
  for (const { expected, ...failure } of cases) {
    const error = errorOf({ ...failure, message: 'domain not found, connection refused, no space' });
    t.equal(error.code, expected, `${failure.code} of ${failure.domain} with errno ${failure.errno}`);
    t.same(error.libvirt, { code: failure.code, domain: failure.domain });
  }
});

void t.test('an error that the operator can do something about says what', async (t) => {
  for (const code of [42, 55, 68]) {
    t.ok(errorOf({ code, domain: fromQemu, errno: 0, message: 'failed' }).hint, String(code));
  }
  t.equal(errorOf({ code: 68, domain: fromQemu, errno: 0, message: 'failed' }).retryable, true);
});
