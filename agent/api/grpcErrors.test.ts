import { Metadata, status } from '@grpc/grpc-js';
import t from 'tap';
import { JobError } from '../jobs/errors.ts';
import { detailOf, errorDetail, failedCall, recordOfDetail } from './grpcErrors.ts';

void t.test('an error comes through a call with its code, hint and whether to try again', async (t) => {
  const error = new JobError('MACHINE_BUSY', 'm is being worked on', { hint: 'wait', retryable: true });
  const call = failedCall(error);
  t.equal(call.code, status.ABORTED);
  t.equal(call.details, 'MACHINE_BUSY: m is being worked on');
  const detail = detailOf(call);
  t.same(detail, {
    code: 'MACHINE_BUSY',
    message: 'm is being worked on',
    hint: 'wait',
    retryable: true,
    about: '',
  });
});

void t.test('an error without a hint has none afterwards', async (t) => {
  const record = { code: 'JOB_NOT_FOUND', message: 'none', retryable: false };
  t.same(recordOfDetail(errorDetail(record, 'm')), record);
  t.equal(errorDetail(record, 'm').about, 'm');
});

void t.test('what is not ours is INTERNAL_ERROR, and is told all the same', async (t) => {
  const call = failedCall(new TypeError('x is not a function'));
  t.equal(call.code, status.INTERNAL);
  t.equal(detailOf(call)?.code, 'INTERNAL_ERROR');
});

void t.test('no text of an error can break the trailers that carry it', async (t) => {
  const halves = failedCall(new JobError('JOB_NOT_FOUND', `half of a character: \ud800`));
  t.doesNotThrow(() => encodeURI(halves.details), 'grpc-js encodes it as a URI');
  const long = failedCall(new JobError('JOB_NOT_FOUND', 'x'.repeat(1e6), { hint: 'y'.repeat(1e6) }));
  const [bytes] = long.metadata.get('grpc-status-details-bin');
  t.ok(long.details.length < 2000);
  t.ok((bytes?.length ?? 0) < 6000, 'clients refuse long headers');
});

void t.test('a call of another service tells nothing of ours', async (t) => {
  t.equal(detailOf({ metadata: new Metadata() }), undefined);
});
