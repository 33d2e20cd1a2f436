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

void t.test('every error code has a gRPC status, but for those of the command line itself', async (t) => {
  const codes = Object.keys(exitCodes).filter((code) => !ofCommands.includes(code));
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
