import { X509Certificate } from 'node:crypto';
import t from 'tap';
import { FreeAuthority } from '../../test/tls/authority.ts';
import { renewalDueAt, retryDelayMs } from './renewalTime.ts';

const hourMs = 3_600_000;

void t.test(
  'renewal begins between 2/3 and 3/4 of the lifetime, for each certificate at its own time',
  async (t) => {
    const ca = new FreeAuthority();
    const sample = () => new X509Certificate(ca.sign({ role: 'host', id: 'h' }, [0, 24]).certificate);
    const dueHours = Array.from({ length: 20 }, () => {
      const certificate = sample();
      t.same(renewalDueAt(certificate), renewalDueAt(certificate), 'always the same');
      return (renewalDueAt(certificate).getTime() - certificate.validFromDate.getTime()) / hourMs;
    });
    for (const hours of dueHours) t.ok(hours >= 15.99 && hours <= 18.01, `${hours}`);
    t.ok(Math.max(...dueHours) - Math.min(...dueHours) > 0.2, 'they part');
  },
);

void t.test('each failure in a row doubles the wait, up to six hours, less a random half', (t) => {
  t.same(
    [1, 2, 3, 9, 10, 1000].map((failures) => retryDelayMs(failures, 0) / 60_000),
    [1, 2, 4, 256, 360, 360],
  );
  t.equal(retryDelayMs(1, 1), 30_000);
  t.end();
});
