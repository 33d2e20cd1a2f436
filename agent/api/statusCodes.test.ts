import { status } from '@grpc/grpc-js';
import t from 'tap';
import { exitCodes } from '../../cli/exitCodes.ts';
import { statusCodes, statusOf } from './statusCodes.ts';

/** What only a command can refuse or meet. */
const ofCommands = [
  'INTERRUPTED',
  'NOT_AVAILABLE',
  'OUTPUT_FAILED',
  'SERVICE_INCOMPATIBLE',
  'SERVICE_LOST',
  'SERVICE_UNREACHABLE',
  'USAGE',
];

/** What the service logs, and what only the controller's side and a host that joins it meet. */
const ofOtherParts = [
  'ALERT_FILE_UNUSABLE',
  'ALERT_NOT_DELIVERED',
  'CANNOT_LISTEN',
  'CERTIFICATE_EXPIRED',
  'CERTIFICATE_INVALID',
  'CERTIFICATE_NOT_YET_VALID',
  'CERTIFICATE_UNKNOWN',
  'CONTROLLER_REFUSED',
  'CONTROLLER_UNREACHABLE',
  'CONTROLLER_UNTRUSTED',
  'ENROLMENT_REFUSED',
  'HOST_ALREADY_ENROLLED',
  'HOST_ENROLLED',
  'HOST_ID_MISSING',
  'IDENTITY_DAMAGED',
  'IDENTITY_REPLACED',
  'METRICS_UNAVAILABLE',
  'OUTBOX_DAMAGED',
  'OUTBOX_UNUSABLE',
  'REPORT_STORE_UNUSABLE',
  'REVOCATIONS_DAMAGED',
  'TOKEN_EXPIRED',
  'TOKEN_OF_ANOTHER_HOST',
  'TOKEN_REFUSED',
  'TOKEN_UNKNOWN',
  'TOKEN_USED',
];

void t.test('every error code has a gRPC status, but for those that no call can carry', async (t) => {
  const none = new Set([...ofCommands, ...ofOtherParts]);
  const codes = Object.keys(exitCodes).filter((code) => !none.has(code));
  t.same(Object.keys(statusCodes).toSorted(), codes.toSorted());
});

void t.test('the status tells a client that knows no codes what to do', async (t) => {
  t.equal(statusOf('MACHINE_BUSY'), status.ABORTED);
  t.equal(statusOf('MACHINE_NOT_FOUND'), status.NOT_FOUND);
  t.equal(statusOf('BACKUP_DAMAGED'), status.DATA_LOSS);
  t.equal(statusOf('STORAGE_UNREACHABLE'), status.UNAVAILABLE);
  t.equal(statusOf('CURSOR_EXPIRED'), status.OUT_OF_RANGE);
  t.equal(statusOf('CALLER_DENIED'), status.PERMISSION_DENIED);
  t.equal(statusOf('FROM_ANOTHER_VERSION'), status.INTERNAL);
  t.equal(statusOf('toString'), status.INTERNAL);
});
