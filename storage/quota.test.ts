import t from 'tap';
import { Quota } from './quota.ts';

const mebibyte = 1024 * 1024;

/** A storage that holds what a test says. */
class Place {
  storedBytes = 0;
  looks = 0;

  quota(quotaBytes: number): Quota {
    const measure = async (): Promise<number> => {
      this.looks++;
      return this.storedBytes;
    };
    return new Quota({ name: 'a', quotaBytes, measure, hint: 'make room' });
  }
}

void t.test('what fits is taken, and what would pass the quota is refused', async (t) => {
  const quota = new Place().quota(100);
  await quota.take(60);
  await quota.take(40);
  const place = new Place();
  place.storedBytes = 60;
  await t.rejects(place.quota(100).take(41), {
    code: 'QUOTA_EXCEEDED',
    message: 'storage a holds 60 B of its quota of 100 B; 41 B more would pass it',
    hint: 'make room',
  });
});

void t.test(
  'before anything is refused, the storage is looked at: somebody may have made room',
  async (t) => {
    const place = new Place();
    place.storedBytes = 100;
    const quota = place.quota(100);
    await t.rejects(quota.take(1), { code: 'QUOTA_EXCEEDED' });
    place.storedBytes = 0;
    await quota.take(100);
  },
);

void t.test('what is on its way counts, though no look sees it yet', async (t) => {
  const place = new Place();
  const quota = place.quota(100);
  const { promise, resolve } = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  const first = quota.during(60, () => {
    begun.resolve();
    return promise;
  });
  await begun.promise;
  await t.rejects(
    quota.during(60, async () => t.fail('it is begun')),
    { code: 'QUOTA_EXCEEDED' },
  );
  place.storedBytes = 30;
  resolve();
  await first;
  await quota.during(60, async () => t.pass('what came to less leaves room'));
  await t.rejects(
    quota.during(10, () => Promise.reject(new Error('not stored'))),
    { message: 'not stored' },
  );
  await quota.during(70, async () => t.pass('and what came to nothing'));
});

void t.test('what others store is seen, without a look at each object', async (t) => {
  const place = new Place();
  const quota = place.quota(1000 * mebibyte);
  const store = async (): Promise<void> => {
    await quota.take(mebibyte);
    place.storedBytes += mebibyte;
  };
  for (let count = 0; count < 200; count++) await store();
  t.ok(place.looks < 5, `${place.looks} looks`);
  place.storedBytes = 1000 * mebibyte;
  await t.rejects(
    async () => {
      // Half of what was left at the last look.
      for (let count = 0; count < 500; count++) await store();
    },
    { code: 'QUOTA_EXCEEDED' },
  );
});
