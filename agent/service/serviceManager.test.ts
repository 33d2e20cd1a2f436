import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Test } from 'tap';
import t from 'tap';
import { createLogger } from '../../common/log.ts';
import { NotifyReceiver, type Told } from '../../test/lab/notifyReceiver.ts';
import { jobOf, journalFor } from '../../test/sim/journals.ts';
import { Journal } from '../jobs/journal.ts';
import { Pulse, silentMaxMs } from './pulse.ts';
import { ServiceManager } from './serviceManager.ts';
import { statusLine } from './statusLine.ts';

const program = join(import.meta.dirname, '../../bin/stillpoint');

/** A manager of the service with a clock that the test moves; `beat` is called by the test alone. */
function managed(t: Test, journal: ConstructorParameters<typeof ServiceManager>[2]['journal']) {
  const told: Told[] = [];
  const pulse = new Pulse();
  const clock = { nowMs: 0 };
  const atWork: string[] = [];
  const log = createLogger({ level: 'silent' });
  const line = {
    send: async (message: Told) => {
      told.push(message);
    },
  };
  const about = { journal, atWork: () => atWork, pulse, log, stopMs: 60_000, nowMs: () => clock.nowMs };
  // The timer of an hour never comes.
  const manager = new ServiceManager(line, 4 * 3_600_000, about);
  t.teardown(() => manager[Symbol.dispose]());
  const count = (name: string): number => told.filter((message) => message[name] !== undefined).length;
  return { manager, told, pulse, clock, atWork, count };
}

void t.test('the watchdog is fed only while every loop of the service looks', async (t) => {
  const { journal } = await journalFor(t);
  const { manager, told, pulse, clock, count } = managed(t, journal);
  pulse.looked('recovery', 0);
  pulse.looked('schedules', 0);
  manager.beat();
  t.equal(count('WATCHDOG'), 1);
  clock.nowMs = silentMaxMs.recovery + 1;
  manager.beat();
  t.equal(count('WATCHDOG'), 1, 'one of them is silent');
  t.match(told.at(-1), { STATUS: 'stuck: the loop of recovery does not look any more' });
  pulse.looked('recovery', clock.nowMs);
  manager.beat();
  t.equal(count('WATCHDOG'), 2, 'it was only slow');
  clock.nowMs = silentMaxMs.schedules + 1;
  pulse.looked('recovery', clock.nowMs);
  manager.beat();
  t.equal(count('WATCHDOG'), 2, 'each of them counts');
});

void t.test('the watchdog is not fed while the journal cannot be read', async (t) => {
  const { path, journal } = await journalFor(t);
  const broken = new Journal(path);
  broken[Symbol.dispose]();
  const whole = managed(t, journal);
  whole.manager.beat();
  t.equal(whole.count('WATCHDOG'), 1);
  const stuck = managed(t, broken);
  stuck.manager.beat();
  t.equal(stuck.count('WATCHDOG'), 0);
  t.match(stuck.told.at(-1)?.['STATUS'], /^stuck: the journal cannot be read/);
});

void t.test('while the service ends more time is asked for, up to its bound', async (t) => {
  const { journal } = await journalFor(t);
  const { manager, told, clock, pulse, count } = managed(t, journal);
  pulse.looked('recovery', 0);
  manager.beat();
  t.equal(count('EXTEND_TIMEOUT_USEC'), 0);
  clock.nowMs = 1_000_000;
  manager.stopping();
  t.equal(count('STOPPING'), 1);
  t.equal(count('EXTEND_TIMEOUT_USEC'), 1);
  t.equal(count('WATCHDOG'), 2, 'loops that have ended are no reason to starve');
  t.match(told.at(-1), { STATUS: 'ending' });
  clock.nowMs += 59_000;
  manager.beat();
  t.equal(count('EXTEND_TIMEOUT_USEC'), 2);
  clock.nowMs += 2_000;
  manager.beat();
  t.equal(count('EXTEND_TIMEOUT_USEC'), 2, 'it had its time');
});

void t.test('the status names the jobs of this process and what comes next', async (t) => {
  const { journal } = await journalFor(t);
  const { manager, told, atWork, pulse } = managed(t, journal);
  pulse.nextDueMs = () => Date.parse('2026-11-23T02:00:00Z');
  manager.beat();
  t.match(told.at(-1), { STATUS: 'idle; next backup 2026-11-23T02:00:00.000Z' });
  const job = journal.create(jobOf('a'));
  journal.create(jobOf('of-a-command'));
  atWork.push(job.id);
  journal.publishProgress(job.id, {
    jobId: job.id,
    state: 'retaining',
    step: 'retain',
    doneBytes: 42,
    totalBytes: 100,
  });
  manager.beat();
  t.match(told.at(-1), { STATUS: 'name of a initialized 42 %; next backup 2026-11-23T02:00:00.000Z' });
  const jobs = ['a', 'b', 'c', 'd', 'e'].map((machineName) => {
    return { machineName, state: 'merging', progress: undefined } as const;
  });
  const line = statusLine({ jobs, nextDueMs: null, ending: true, problem: null });
  t.equal(line, 'ending; until then a merging, b merging, c merging, 2 more');
});

void t.test('a real service tells systemd that it is ready, that it lives, and that it ends', async (t) => {
  const home = await mkdtemp(join(tmpdir(), 'stillpoint-service-'));
  t.teardown(() => rm(home, { recursive: true }));
  const config = join(home, 'config.yaml');
  await writeFile(config, `agent: { stateDir: ${home}/state, socket: ${home}/s, ramDisk: null }\n`);
  await using receiver = await NotifyReceiver.start();
  const service = execa(program, ['agent', '--config', config], {
    env: { NOTIFY_SOCKET: receiver.name, WATCHDOG_USEC: '800000' },
    reject: false,
    timeout: 60_000,
  });
  t.teardown(() => service.kill('SIGKILL'));
  await receiver.until(({ told }) => told.some((message) => message['READY'] === '1'));
  t.equal(receiver.count('WATCHDOG'), 1, 'fed from the beginning');
  await receiver.until((now) => now.count('WATCHDOG') >= 3);
  t.equal(receiver.last('STATUS'), 'idle');

  // A process that stands still is one whose event loop does not turn.
  service.kill('SIGSTOP');
  await receiver.until(() => true);
  const before = receiver.count('WATCHDOG');
  await new Promise((resolve) => setTimeout(resolve, 2_000));
  t.ok(receiver.count('WATCHDOG') <= before + 1, 'nothing feeds the watchdog of a service that is stuck');
  service.kill('SIGCONT');
  await receiver.until((now) => now.count('WATCHDOG') > before + 1);

  service.kill('SIGTERM');
  const { exitCode } = await service;
  t.equal(exitCode, 0);
  t.equal(receiver.count('STOPPING'), 1);
  t.equal(receiver.last('STATUS'), 'ending');
});
