import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { createLogger } from '../../common/log.ts';
import { type Config, configSchema } from '../../config/schema.ts';
import { noteSaid } from '../../test/secrets.ts';
import { readAlerts } from './alertFile.ts';
import { Alerts } from './alerts.ts';
import { host, job, nowMs as startedMs, storage } from './fixture.ts';
import { problemsOf } from './problems.ts';
import { Receiver } from './webhookFixture.ts';

const parked = host({ jobs: [job({ hold: 'parked' })] });
const full = host({ storages: [storage({ state: { warning: 'nearly full' } })] });
const well = host();
const bounds = { overdueMs: 1, settleMs: 0 };

/** A host whose service is started and ended by a test, on a clock that it moves. */
class Stage {
  nowMs = startedMs;
  readonly lines: string[] = [];
  readonly config: Config;
  #stop = new AbortController();
  #alerts: Alerts | undefined;

  constructor(stateDir: string, webhooks: readonly object[]) {
    this.config = configSchema.parse({
      agent: { stateDir },
      storages: { local: { kind: 'directory', path: '/backups' } },
      alerts: { webhooks },
    });
  }

  static async create(test: Test, webhooks: readonly object[]): Promise<Stage> {
    const stateDir = await mkdtemp(join(tmpdir(), 'stillpoint-alerts-'));
    const stage = new Stage(stateDir, webhooks);
    test.after(async () => {
      await stage.stop();
      await rm(stateDir, { recursive: true });
    });
    return stage;
  }

  get file(): string {
    return join(this.config.agent.stateDir, 'alerts.json');
  }

  /** The service starts; with other webhooks, if some are given. */
  async start(webhooks: readonly object[] = this.config.alerts.webhooks): Promise<Alerts> {
    await this.stop();
    this.#stop = new AbortController();
    const destination = {
      write: (line: string): void => {
        noteSaid('a log', line);
        this.lines.push(line);
      },
    };
    const log = createLogger({ destination });
    const config = configSchema.parse({ ...this.config, alerts: { webhooks } });
    this.#alerts = await Alerts.open({ config, log, signal: this.#stop.signal, now: () => this.nowMs });
    return this.#alerts;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#alerts?.settled();
  }

  /** The service looks at the host, and everything that is due has been tried. */
  async look(status: typeof well): Promise<void> {
    await this.#alerts?.consider(status, problemsOf(status, bounds));
    await this.#alerts?.settled();
  }
}

void t.test('what is wrong is told once, in order, and once when it is right again', async (t) => {
  await using receiver = await Receiver.start();
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  await stage.start();
  for (const status of [parked, parked, well, well]) await stage.look(status);
  t.same(receiver.told, ['firing job-parked', 'resolved job-parked']);
  const [begun, over] = receiver.received;
  t.equal(begun?.body.id, over?.body.id);
  t.match(begun?.body, { version: 1, severity: 'critical', jobId: job().id, endedAt: null });
  t.match(over?.body, { endedAt: /^2026-/ });
});

void t.test('a restart tells nothing twice, and sends what was waiting', async (t) => {
  await using receiver = await Receiver.start();
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  await stage.start();
  await stage.look(parked);
  receiver.status = 503;
  await stage.look(full);
  t.same(receiver.told, ['firing job-parked', 'resolved job-parked'], 'the second one was not taken');
  receiver.status = 204;
  stage.nowMs += 30_000;
  const alerts = await stage.start();
  t.equal(alerts.waiting, 2);
  await stage.look(full);
  t.same(receiver.told.slice(2), ['resolved job-parked', 'firing storage-full']);
  t.equal(alerts.waiting, 0);
});

void t.test(
  'a webhook that does not take an alert is tried again, later each time, and given up in the end',
  async (t) => {
    await using receiver = await Receiver.start();
    receiver.status = 500;
    const stage = await Stage.create(t, [{ url: receiver.url }]);
    const alerts = await stage.start();
    await stage.look(parked);
    const attemptAfter = async (ms: number): Promise<number> => {
      stage.nowMs += ms;
      await stage.look(parked);
      return receiver.received.length;
    };
    t.equal(await attemptAfter(29_999), 1, 'not before');
    t.equal(await attemptAfter(1), 2);
    t.equal(await attemptAfter(59_999), 2);
    t.equal(await attemptAfter(1), 3);
    await attemptAfter(3 * 86_400_000);
    t.equal(alerts.waiting, 0);
    t.equal(stage.lines.filter((line) => line.includes('given up')).length, 1);
    t.equal(stage.lines.filter((line) => line.includes('is tried again')).length, 1, 'it is said once');
  },
);

void t.test(
  'what is to be told is kept before anything is sent: a kill in between loses nothing',
  async (t) => {
    await using receiver = await Receiver.start();
    receiver.status = null;
    const stage = await Stage.create(t, [{ url: receiver.url }]);
    const alerts = await stage.start();
    await alerts.consider(parked, problemsOf(parked, bounds));
    const kept = await readAlerts(stage.file);
    t.match(kept?.open, [{ event: 'job-parked' }]);
    t.match(Object.values(kept?.waiting ?? {}), [[{ notice: { status: 'firing' }, attempts: 0 }]]);
  },
);

void t.test('a clock that was ahead silences no webhook once it is right again', async (t) => {
  await using receiver = await Receiver.start();
  receiver.status = 500;
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  await stage.start();
  const rightMs = stage.nowMs;
  stage.nowMs += 2 * 86_400_000;
  await stage.look(parked);
  t.equal(receiver.received.length, 1);
  receiver.status = 204;
  stage.nowMs = rightMs;
  await stage.look(parked);
  t.same(receiver.told, ['firing job-parked', 'firing job-parked']);
});

void t.test('one webhook that does not answer holds up no other', async (t) => {
  await using silent = await Receiver.start();
  await using receiver = await Receiver.start();
  silent.status = null;
  const stage = await Stage.create(t, [{ url: silent.url }, { url: receiver.url }]);
  const alerts = await stage.start();
  await alerts.consider(parked, problemsOf(parked, bounds));
  await receiver.until(1);
  await alerts.consider(well, problemsOf(well, bounds));
  await receiver.until(2);
  t.same(receiver.told, ['firing job-parked', 'resolved job-parked']);
  t.equal(silent.received.length <= 1, true);
});

void t.test('a webhook hears of its events only', async (t) => {
  await using receiver = await Receiver.start();
  const stage = await Stage.create(t, [{ url: receiver.url, events: ['storage-full'] }]);
  await stage.start();
  for (const status of [parked, full, well]) await stage.look(status);
  t.same(receiver.told, ['firing storage-full', 'resolved storage-full']);
});

void t.test('no more wait than may, and the newest are kept', async (t) => {
  await using receiver = await Receiver.start();
  receiver.status = 500;
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  const alerts = await stage.start();
  for (let round = 0; round < 300; round += 1) {
    await stage.look(parked);
    await stage.look(well);
  }
  t.equal(alerts.waiting, 500);
  t.ok((await stat(stage.file)).size < 1024 * 1024);
  t.match(stage.lines.join(''), 'the oldest are dropped');
});

void t.test('what waits for a webhook that is gone from the configuration is forgotten', async (t) => {
  await using receiver = await Receiver.start();
  receiver.status = 500;
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  await stage.start();
  await stage.look(parked);
  const alerts = await stage.start([{ url: `${receiver.url}-other` }]);
  await stage.look(parked);
  t.equal(alerts.waiting, 0);
});

void t.test(
  'neither the file nor the log holds the address of a webhook, and the file is ours alone',
  async (t) => {
    await using receiver = await Receiver.start();
    receiver.status = 500;
    const stage = await Stage.create(t, [{ url: receiver.url }]);
    await stage.start();
    await stage.look(parked);
    t.notMatch(await readFile(stage.file, 'utf8'), /t0ken/);
    t.notMatch(stage.lines.join(''), /t0ken/);
    t.equal((await stat(stage.file)).mode & 0o777, 0o600);
  },
);

void t.test('a file that cannot be read is told of, and what is wrong is told once more', async (t) => {
  await using receiver = await Receiver.start();
  const stage = await Stage.create(t, [{ url: receiver.url }]);
  for (const damage of ['{ half', '{ "version": 2 }']) {
    await writeFile(stage.file, damage);
    await stage.start();
    t.match(stage.lines.at(-1), 'cannot be read');
    await stage.look(parked);
  }
  t.equal(receiver.received.length, 2);
});
