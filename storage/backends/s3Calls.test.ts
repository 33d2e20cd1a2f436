import t from 'tap';
import { StorageError } from '../errors.ts';
import { patienceOf, S3Call } from './s3Calls.ts';
import { s3LimitsDefault, type S3Limits } from './s3Settings.ts';

const place = {
  location: 'https://s3.test/vault',
  endpoint: 'https://s3.test',
  bucket: 'vault',
  region: 'us-east-1',
  accessKeyId: 'KEYID',
  clean: (words: string) => words,
};
const quick: Partial<S3Limits> = { pauseMs: 1, pauseMsMax: 2, attemptsMax: 4 };
/** No pause of a test ends by itself. */
const sleepy: Partial<S3Limits> = { pauseMs: 2 ** 40, pauseMsMax: 2 ** 31 - 1 };

async function request<T>(
  limits: Partial<S3Limits>,
  send: (signal: AbortSignal) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const patience = patienceOf(place, { ...s3LimitsDefault, ...limits });
  // The server is known to be there.
  patience.contact.isMade = true;
  return S3Call.run('reading a', patience, { signal }, (call) => call.request(send));
}

function lostConnection(): Error {
  return Object.assign(new Error('socket hang up'), { code: 'ECONNRESET' });
}

void t.test('what can pass is tried again, so many times', async (t) => {
  let attempts = 0;
  const answer = await request(quick, async () => {
    if (++attempts < 4) throw lostConnection();
    return Promise.resolve('at last');
  });
  t.equal(answer, 'at last');
  attempts = 0;
  await t.rejects(
    request(quick, () => {
      attempts++;
      return Promise.reject(lostConnection());
    }),
    {
      code: 'STORAGE_UNREACHABLE',
      message: 'reading a at https://s3.test/vault: socket hang up',
      hint: /curl -v https:\/\/s3\.test/,
      retryable: true,
    },
  );
  t.equal(attempts, 4);
});

void t.test('what will not pass, and what is our own mistake, is told at once and as it is', async (t) => {
  for (const error of [new StorageError('STORAGE_FULL', 'no room'), new TypeError('not a function')]) {
    let attempts = 0;
    const send = (): Promise<never> => {
      attempts++;
      return Promise.reject(error);
    };
    await t.rejects(request(quick, send), error);
    t.equal(attempts, 1);
  }
});

void t.test('a call ends when its time is over, in a request and between two', async (t) => {
  const late = {
    code: 'STORAGE_UNREACHABLE',
    message: /did not end within 0\.05 s/,
    retryable: true,
  };
  const never = (signal: AbortSignal): Promise<never> =>
    new Promise((_resolve, reject) => {
      signal.addEventListener('abort', () => reject(new Error('aborted')));
    });
  await t.rejects(request({ callMs: 50 }, never), late);
  const failing = request({ ...sleepy, callMs: 50 }, () => Promise.reject(lostConnection()));
  await t.rejects(failing, { ...late, message: /0\.05 s; last: .*socket hang up/ });
});

void t.test('a server that has never answered is given up soon', async (t) => {
  const limits = { ...s3LimitsDefault, ...quick, firstContactAttemptsMax: 2, firstContactMs: 30 };
  const silent = (signal: AbortSignal): Promise<never> =>
    new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('aborted'))));
  await t.rejects(
    S3Call.run('reading a', patienceOf(place, limits), {}, (call) => call.request(silent)),
    { code: 'STORAGE_UNREACHABLE', message: /reading a at .*: no answer within 0\.03 s/ },
  );
  const patience = patienceOf(place, limits);
  let attempts = 0;
  const refused = (): Promise<never> => {
    attempts++;
    return Promise.reject(Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }));
  };
  const asked = (): Promise<never> => S3Call.run('reading a', patience, {}, (call) => call.request(refused));
  await t.rejects(asked(), { code: 'STORAGE_UNREACHABLE', message: /refused/ });
  t.equal(attempts, 2);
  await S3Call.run('reading a', patience, {}, (call) => call.request(() => Promise.resolve('here I am')));
  await t.rejects(asked(), { code: 'STORAGE_UNREACHABLE' });
  t.equal(attempts, 2 + 4, 'once it has answered there is patience again');
});

void t.test('a signal ends the pause before the next request', async (t) => {
  const stop = new AbortController();
  const reason = new Error('enough');
  const send = (): Promise<never> => {
    setImmediate(() => stop.abort(reason));
    return Promise.reject(lostConnection());
  };
  await t.rejects(request(sleepy, send, stop.signal), reason);
});
