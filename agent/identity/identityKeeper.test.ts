import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { createLogger } from '../../common/log.ts';
import type { CertificateAuthority } from '../../controller/ca.ts';
import { enrolHost, openAuthority, temporaryDirectory } from '../../test/tls/authority.ts';
import { certificateOf, type KeptIdentity } from './identity.ts';
import { IdentityKeeper } from './identityKeeper.ts';
import { IdentityStore } from './identityStore.ts';
import { renewalDueAt } from './renewalTime.ts';

const hourMs = 3_600_000;

const logLine = z.looseObject({ level: z.number(), msg: z.string() });

/** A host with a certificate, a clock that is set by hand, and a controller that does as it is told. */
class Bench {
  readonly directory: string;
  readonly store: IdentityStore;
  readonly keeper: IdentityKeeper;
  readonly looks: { readonly generation: number; readonly revoked: readonly string[] | null }[] = [];
  readonly log: z.output<typeof logLine>[] = [];
  nowMs = Date.now();
  renewals = 0;
  lefts = 0;
  revocationQuestions = 0;
  revoked: readonly string[] = [];
  fault: Error | null = null;

  constructor(ca: CertificateAuthority, directory: string) {
    this.directory = directory;
    this.store = new IdentityStore(directory);
    const answer = <T>(value: T): Promise<T> =>
      this.fault === null ? Promise.resolve(value) : Promise.reject(this.fault);
    this.keeper = new IdentityKeeper({
      store: this.store,
      renew: async ({ hostId, generation }) => {
        this.renewals += 1;
        await answer(undefined);
        const token = ca.issueToken({ hostId });
        const { key, request } = await this.store.pending('renewal', hostId);
        const certificate = ca.enrol({ token, certificateRequest: request, hostId });
        const controller = { name: ca.name, address: 'c:1' };
        return this.store.adopt(
          { key, certificate, authorities: ca.certificate, hostId, controller },
          generation,
        );
      },
      listRevoked: () => {
        this.revocationQuestions += 1;
        return answer(this.revoked);
      },
      onLook: async ({ generation }, revoked) => {
        this.looks.push({ generation, revoked: revoked === null ? null : [...revoked] });
      },
      onLeft: async () => {
        this.lefts += 1;
      },
      log: createLogger({
        level: 'info',
        destination: { write: (line) => this.log.push(logLine.parse(JSON.parse(line))) },
      }),
      now: () => new Date(this.nowMs),
      random: () => 0,
    });
  }

  async current(): Promise<KeptIdentity> {
    const identity = await this.store.current();
    if (identity === null) throw new Error('the host has not joined');
    return identity;
  }

  /** Sets the clock to where the certificate in force is due. */
  async toDue(): Promise<void> {
    this.nowMs = renewalDueAt(certificateOf(await this.current())).getTime();
  }
}

async function joined(t: Test): Promise<Bench> {
  const ca = await openAuthority(t);
  const bench = new Bench(ca, await temporaryDirectory(t, 'identity'));
  await bench.store.adopt(enrolHost(ca), 0);
  return bench;
}

void t.test('a certificate is renewed when it is due, not before, and at once in force', async (t) => {
  const bench = await joined(t);
  await bench.keeper.look();
  await bench.toDue();
  bench.nowMs -= 1;
  await bench.keeper.look();
  t.equal(bench.renewals, 0);
  bench.nowMs += 1;
  await bench.keeper.look();
  t.equal(bench.renewals, 1);
  t.same(
    bench.looks.map(({ generation }) => generation),
    [1, 1, 2],
  );
  t.equal((await bench.current()).generation, 2);
});

void t.test(
  'a renewal that fails is told, tried again later and later, and told louder near the end',
  async (t) => {
    const bench = await joined(t);
    bench.fault = new Error('away');
    await bench.toDue();
    for (const [waitMs, renewals] of [
      [0, 1],
      [59_999, 1],
      [1, 2],
      [60_000, 2],
      [60_000, 3],
    ] as const) {
      bench.nowMs += waitMs;
      await bench.keeper.look();
      t.equal(bench.renewals, renewals);
    }
    const told = () => bench.log.filter(({ msg }) => msg.includes('could not be renewed')).at(-1);
    t.match(told(), { level: 40 });
    const { validFromDate, validToDate } = certificateOf(await bench.current());
    bench.nowMs = validToDate.getTime() - (validToDate.getTime() - validFromDate.getTime()) / 20;
    await bench.keeper.look();
    t.match(told(), { level: 50 });
    bench.fault = null;
    bench.nowMs += 24 * hourMs;
    await bench.keeper.look();
    t.equal((await bench.current()).generation, 2);
  },
);

void t.test(
  'nobody is asked with a certificate that has expired; the host is told to join again',
  async (t) => {
    const bench = await joined(t);
    bench.nowMs = certificateOf(await bench.current()).validToDate.getTime() + 1;
    await bench.keeper.look();
    t.same([bench.renewals, bench.revocationQuestions], [0, 0]);
    t.match(bench.log.at(-1), { level: 50, err: { code: 'CERTIFICATE_EXPIRED', hint: /agent join/ } });
  },
);

void t.test('a clock that is behind is told, with what it says', async (t) => {
  const bench = await joined(t);
  bench.nowMs -= 48 * hourMs;
  await bench.keeper.look();
  const err = { code: 'CERTIFICATE_NOT_YET_VALID', message: /the clock here says/, hint: /timedatectl/ };
  t.match(bench.log[1], { level: 40, err });
});

void t.test(
  'revocations are asked for each hour, and the last word counts while nobody answers',
  async (t) => {
    const bench = await joined(t);
    bench.revoked = ['AA'];
    await bench.keeper.look();
    bench.revoked = ['AA', 'BB'];
    bench.nowMs += hourMs - 1;
    await bench.keeper.look();
    bench.fault = new Error('away');
    bench.nowMs += 1;
    await bench.keeper.look();
    bench.fault = null;
    bench.nowMs += hourMs;
    await bench.keeper.look();
    t.equal(bench.revocationQuestions, 3);
    t.same(
      bench.looks.map(({ revoked }) => revoked),
      [['AA'], ['AA'], ['AA'], ['AA', 'BB']],
    );
  },
);

void t.test('what was revoked once stays so, whatever the controller says later', async (t) => {
  const bench = await joined(t);
  bench.revoked = ['AA'];
  await bench.keeper.look();
  bench.revoked = ['BB'];
  bench.nowMs += hourMs;
  await bench.keeper.look();
  bench.revoked = [];
  bench.nowMs += hourMs;
  await bench.keeper.look();
  t.same([...(await bench.store.revoked())], ['AA', 'BB']);
  t.same(bench.looks.at(-1)?.revoked, ['AA', 'BB']);
});

void t.test(
  'a list of revocations that is damaged is told with its file, and replaced as soon as the controller answers',
  async (t) => {
    const bench = await joined(t);
    bench.revoked = ['AA'];
    await bench.keeper.look();
    const file = join(bench.directory, 'revoked.json');
    for (const [at, damage] of ['', '["A', '{}'].entries()) {
      await writeFile(file, damage);
      bench.log.length = 0;
      bench.fault = new Error('away');
      await bench.keeper.look();
      await bench.keeper.look();
      t.equal(bench.looks.at(-1)?.revoked, null, 'nobody is known to be good');
      const told = bench.log.filter(({ msg }) => msg.includes('no controller is let in'));
      t.match(told, [{ level: 40, err: { code: 'REVOCATIONS_DAMAGED', message: file } }], 'once');
      bench.fault = null;
      bench.revoked = [`B${at}`];
      await bench.keeper.look();
      t.same(bench.looks.at(-1)?.revoked, [`B${at}`], 'without waiting for the hour');
      t.same([...(await bench.store.revoked())], [`B${at}`]);
    }
  },
);

void t.test('a certificate is renewed although the list of revocations is damaged', async (t) => {
  const bench = await joined(t);
  await bench.toDue();
  await mkdir(join(bench.directory, 'revoked.json'));
  await bench.keeper.look();
  t.equal(bench.renewals, 1);
  t.match(bench.looks, [{ generation: 2, revoked: null }]);
});

void t.test('a clock that goes back does not keep the host from asking', async (t) => {
  const bench = await joined(t);
  bench.nowMs += 48 * hourMs;
  await bench.keeper.look();
  bench.nowMs -= 47 * hourMs;
  await bench.keeper.look();
  t.equal(bench.revocationQuestions, 2);
});

void t.test('a host that joins while the service runs is seen with the next look', async (t) => {
  const ca = await openAuthority(t);
  const bench = new Bench(ca, await temporaryDirectory(t, 'identity'));
  await bench.keeper.look();
  t.same(bench.looks, []);
  await bench.store.adopt(enrolHost(ca), 0);
  await bench.keeper.look();
  await bench.store.adopt(enrolHost(ca), 1);
  await bench.keeper.look();
  t.same(
    bench.looks.map(({ generation }) => generation),
    [1, 2],
  );
});

void t.test(
  'a host that leaves its controller while the service runs is seen with the next look',
  async (t) => {
    const bench = await joined(t);
    await bench.keeper.look();
    t.equal(bench.lefts, 0);
    await bench.store.leave();
    await bench.keeper.look();
    t.equal(bench.lefts, 1);
    t.match(
      bench.log.map(({ msg }) => msg),
      ['the host has a certificate of its controller', 'the host has left its controller'],
    );
  },
);
