import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import * as z from 'zod';
import { digest, host, hourMs, job, machine, nowMs, schedule, storage, stored, webUuid } from './fixture.ts';
import type { Observation } from './metric.ts';
import { metrics, metricsText } from './metrics.ts';
import { metricsPage } from './metricsPage.ts';

const docs = join(import.meta.dirname, '..', '..', 'docs');

function observation(change: Partial<Observation> = {}): Observation {
  return {
    status: host(),
    problems: [],
    journalBytes: 8192,
    places: [{ path: '/var/lib/stillpoint', freeBytes: 1_000_000 }],
    jobBytes: new Map([['retain', 123]]),
    configReload: { ok: true, atMs: nowMs },
    outbox: { waiting: 2, oldestAtMs: nowMs },
    waitingAlerts: 0,
    ...change,
  };
}

/** Figures by name and labels, as Prometheus reads them. */
async function figures(of: Observation): Promise<ReadonlyMap<string, number>> {
  const lines = (await metricsText(of)).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => {
      const [, name = '', value = ''] = /^(\S+(?:\{.*\})?) (\S+)$/.exec(line) ?? [];
      return [name, Number(value)];
    }),
  );
}

void t.test('a host is told in figures', async (t) => {
  const told = await figures(observation());
  const expected = {
    stillpoint_up: 1,
    'stillpoint_backup_last_timestamp_seconds{machine="web-1",storage="local"}': (nowMs - hourMs) / 1000,
    'stillpoint_backup_last_age_seconds{machine="web-1",storage="local"}': 3600,
    'stillpoint_backup_last_run_successful{machine="web-1"}': 1,
    'stillpoint_backup_last_pause_seconds{machine="web-1"}': 0.25,
    'stillpoint_backup_last_duration_seconds{machine="web-1"}': 90,
    'stillpoint_backup_last_step_seconds{machine="web-1",step="retain"}': 60,
    'stillpoint_backup_next_timestamp_seconds{machine="web-1"}': nowMs / 1000 + 23 * 3600,
    stillpoint_machines: 1,
    stillpoint_machines_without_backup: 0,
    'stillpoint_storage_up{storage="local"}': 1,
    'stillpoint_storage_free_bytes{storage="local"}': 600,
    'stillpoint_verification_last_age_seconds{machine="web-1",storage="local"}': 86_400,
    'stillpoint_jobs{kind="backup",state="running"}': 0,
    'stillpoint_job_bytes_total{step="retain"}': 123,
    'stillpoint_scratch_free_bytes{path="/var/lib/stillpoint"}': 1_000_000,
    stillpoint_config_last_reload_successful: 1,
    stillpoint_outbox_reports: 2,
    stillpoint_journal_bytes: 8192,
  };
  for (const [name, value] of Object.entries(expected)) t.equal(told.get(name), value, name);
});

void t.test('what is not known has no figure, and what was known before has none either', async (t) => {
  const names = async (of: Observation) => [...(await figures(of)).keys()].join('\n');
  t.match(await names(observation()), 'stillpoint_outbox_reports');
  const nothing = observation({
    status: host({
      machines: [machine({ lastBackups: [], lastRun: null, lastSuccess: null, schedule: null })],
    }),
    outbox: null,
    configReload: null,
    waitingAlerts: null,
  });
  const left = await names(nothing);
  for (const name of ['outbox', 'config_last', 'backup_last', 'backup_next', 'alerts'])
    t.notMatch(left, `stillpoint_${name}`, name);
  t.equal((await figures(nothing)).get('stillpoint_machines_without_backup'), 1);
});

void t.test('jobs count by what they do, and a machine that is due and not begun is queued', async (t) => {
  const due = schedule({ nextMs: nowMs });
  const status = host({
    jobs: [job({ hold: 'parked' }), job({ hold: 'running', kind: 'restore' })],
    machines: [machine({ schedule: due }), machine({ uuid: 'other', name: 'db-1', schedule: due })],
  });
  const told = await figures(observation({ status }));
  t.equal(told.get('stillpoint_jobs{kind="backup",state="parked"}'), 1);
  t.equal(told.get('stillpoint_jobs{kind="restore",state="running"}'), 1);
  t.equal(told.get('stillpoint_jobs_queued'), 1, 'the other one has a job');
});

void t.test('machines that are excluded, and those of other hosts, have no figures', async (t) => {
  const foreign = stored({ uuid: 'elsewhere', name: 'far-1' });
  const look = storage({
    machines: new Map([
      [webUuid, stored()],
      ['elsewhere', foreign],
    ]),
  });
  const status = host({
    machines: [machine(), machine({ name: 'scratch-1', excluded: true })],
    storages: [look],
  });
  const text = await metricsText(observation({ status }));
  t.notMatch(text, /far-1|scratch-1/);
});

void t.test('names of machines cannot break the format', async (t) => {
  const name = 'a"b\\c\nstillpoint_up 0';
  const text = await metricsText(observation({ status: host({ machines: [machine({ name })] }) }));
  t.match(text, String.raw`machine="a\"b\\c\nstillpoint_up 0"`);
  t.equal(text.split('\n').filter((line) => line.startsWith('stillpoint_up')).length, 1);
});

void t.test('however many machines there are, an answer stays bounded', async (t) => {
  const machines = Array.from({ length: 1500 }, (_, index) =>
    machine({ uuid: `u${index}`, name: `vm-${index}` }),
  );
  const told = await figures(observation({ status: host({ machines }) }));
  const of = (metric: string) => [...told.keys()].filter((name) => name.startsWith(`${metric}{`)).length;
  t.equal(of('stillpoint_backup_last_timestamp_seconds'), 1000);
  t.equal(told.get('stillpoint_machines'), 1500);
  t.equal(told.get('stillpoint_machines_without_figures'), 500);
});

void t.test('a step that was repeated counts with all its times', async (t) => {
  const steps = [1000, 2000].map((durationMs) => ({ name: 'merge', durationMs }));
  const status = host({ machines: [machine({ lastSuccess: digest({ steps }) })] });
  const told = await figures(observation({ status }));
  t.equal(told.get('stillpoint_backup_last_step_seconds{machine="web-1",step="merge"}'), 3);
});

void t.test('every metric is named, typed and explained as Prometheus asks for', (t) => {
  for (const { name, type, help, labels } of metrics) {
    t.match(name, /^stillpoint_[a-z_]+$/);
    t.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`);
    t.match(help, /^.+[.]$/s, name);
    t.equal(new Set(labels).size, labels.length);
  }
  t.equal(new Set(metrics.map(({ name }) => name)).size, metrics.length, 'each once');
  t.end();
});

void t.test('the page about metrics is the one that the program gives', async (t) => {
  const page = await readFile(join(docs, 'METRICS.md'), 'utf8');
  t.equal(page, metricsPage(), 'scripts/with-node node scripts/metrics.ts writes it anew');
});

const rulesSchema = z.object({
  groups: z.array(
    z.object({
      name: z.string(),
      rules: z.array(
        z.strictObject({
          alert: z.string().regex(/^[A-Za-z]+$/),
          expr: z.string(),
          for: z
            .string()
            .regex(/^\d+[smhd]$/)
            .optional(),
          labels: z.object({ severity: z.enum(['warning', 'critical']) }),
          annotations: z.record(z.string(), z.string()),
        }),
      ),
    }),
  ),
});

/** What may stand in an expression besides metrics of ours; `up` is Prometheus's own. */
const words = new Set(
  'time max by instance machine sum absent predict_linear up job state or and on stillpoint'.split(' '),
);

void t.test(
  'the example rules name metrics and labels that there are, in expressions that are well formed',
  async (t) => {
    const text = await readFile(join(docs, 'examples', 'stillpoint-alerts.yaml'), 'utf8');
    const rules = rulesSchema.parse(parse(text)).groups.flatMap((group) => group.rules);
    t.ok(rules.length > 10);
    t.equal(new Set(rules.map(({ alert }) => alert)).size, rules.length, 'each has a name of its own');
    const known = new Map(metrics.map(({ name, labels }) => [name, labels]));
    for (const { alert, expr, annotations } of rules) {
      const bare = expr.replaceAll(/"[^"]*"/g, '');
      t.ok(isBalanced(bare), `${alert}: ${expr}`);
      const names = bare.match(/[a-z_][a-z0-9_]*/gi)?.filter((name) => !/^[0-9]*[smhd]$/.test(name)) ?? [];
      const ours = names.filter((name) => name.startsWith('stillpoint_'));
      t.ok(ours.length > 0, `${alert} is about something`);
      t.same(
        ours.filter((name) => !known.has(name)),
        [],
        alert,
      );
      t.same(
        names.filter((name) => !known.has(name) && !words.has(name)),
        [],
        `${alert}: nothing is misspelt`,
      );
      t.match(bare, /(?:==|!=|<|>|<=|>=) ?-?\d|absent/, `${alert} compares`);
      const labels = new Set(['instance', ...ours.flatMap((name) => known.get(name) ?? [])]);
      const used = Object.values(annotations).flatMap((one) => [...one.matchAll(/\$labels\.(\w+)/g)]);
      for (const [, label = ''] of used) t.ok(labels.has(label), `${alert} has the label ${label}`);
    }
  },
);

function isBalanced(expression: string): boolean {
  const pairs: Readonly<Record<string, string>> = { ')': '(', ']': '[', '}': '{' };
  const open: string[] = [];
  for (const character of expression) {
    if ('([{'.includes(character)) open.push(character);
    const opening = pairs[character];
    if (opening !== undefined && open.pop() !== opening) return false;
  }
  return open.length === 0;
}
