import { Metadata, status } from '@grpc/grpc-js';
import t from 'tap';
import { JobError } from '../jobs/errors.ts';
import { detailOf, errorDetail, type FailedCall, failedCall, recordOfDetail } from './grpcErrors.ts';

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
  const ends = failedCall(new JobError('JOB_NOT_FOUND', `${'x'.repeat(1499)}😀`));
  t.equal(detailOf(ends)?.message, `${'x'.repeat(1499)}…`, 'a character stays whole or goes');
});

void t.test('the trailers of an error are ones that clients take, whatever it says', async (t) => {
  for (const character of ['x', '€', '%', '"', '\n', '\u0000', '😀', '\ud800'])
    for (const length of [1500, 1e6]) {
      const text = character.repeat(length);
      const call = failedCall(new JobError('JOB_NOT_FOUND', text, { hint: text }));
      const size = trailersSize(call);
      t.ok(size < 6 * 1024, `${length} of ${JSON.stringify(character)}: ${size}`);
      const detail = detailOf(call);
      t.equal(detail?.code, 'JOB_NOT_FOUND');
      const most = Math.min(length, Math.floor(1500 / Buffer.byteLength(character)));
      for (const told of [detail?.message, detail?.hint])
        t.equal(told?.replace('…', ''), character.toWellFormed().repeat(most), 'as much as fits is told');
      t.match(call.details, `JOB_NOT_FOUND: ${character.toWellFormed()}`);
    }
});

/** As clients count: each header is its name, its value and 32 bytes. */
function trailersSize({ code, details, metadata }: FailedCall): number {
  const trailers = {
    'grpc-status': code,
    'grpc-message': encodeURI(details),
    ...metadata.toHttp2Headers(),
  };
  return Object.entries(trailers)
    .map(([name, value]) => name.length + String(value).length + 32)
    .reduce((sum, size) => sum + size, 0);
}

void t.test('a call of another service tells nothing of ours', async (t) => {
  t.equal(detailOf({ metadata: new Metadata() }), undefined);
});
