import t, { type Test } from 'tap';

import { randomFrom } from '../../test/sim/objectStore.ts';
import { alert, job, machine, outboxFor, waiting } from '../../test/sim/reports.ts';
import { newId } from '../../common/ids.ts';
import type { Outbox } from './outbox.ts';
import { rowBytes } from './outboxTables.ts';
import { encodeReport, type NewReport, thinnedReport } from './report.ts';

const seed = Number(process.env['STILLPOINT_TEST_SEED'] ?? Date.now() % 2 ** 31);
t.comment(`seed ${seed} (STILLPOINT_TEST_SEED)`);

const timeMs = Date.parse('2026-11-22T02:00Z');
const sizeOf = ({ body }: NewReport): number => encodeReport({ id: newId(), timeMs, body }).length + rowBytes;

const pad = (at: number): NewReport => alert(`pad ${at}`, 'x'.repeat(100));

void t.test(
  'earlier states go first, then earlier progress, then the newest of both, then what lasts',
  async (t) => {
    const reports = [
      alert('the oldest of all'),
      machine('m'),
      job('j', 'merging'),
      machine('m', 'paused'),
      job('j', 'merged'),
      job('k', 'finished'),
    ];
    // Room for these, and for a padding; a sixteenth of it is less than any of them.
    const total = reports.reduce((sum, report) => sum + sizeOf(report), 0);
    const { open } = await outboxFor(t, { maxBytes: total + sizeOf(pad(0)), now: () => timeMs });
    const outbox = open();
    outbox.note({ reports });
    const order = [2, 3, 4, 5, 1, 6];
    const gone: number[] = [];
    for (let round = 0; gone.length < order.length; round++) {
      if (round === 100) throw new Error(`only these went: ${gone.join()}`);
      outbox.note({ reports: [pad(round)] });
      const left = new Set(waiting(outbox).map((one) => Number(one.split(' ')[0])));
      const now = order.filter((sequence) => !left.has(sequence) && !gone.includes(sequence));
      t.same(now, order.slice(gone.length, gone.length + now.length), `after ${gone.join()}`);
      gone.push(...now);
    }
  },
);

/** One report of the model, and what has become of it. */
interface Modelled {
  readonly sequence: number;
  readonly report: NewReport;
  readonly sizeBytes: number;
}

/** What the outbox must do, said once more and in other words. */
class Model {
  waiting: Modelled[] = [];
  last = 0;
  sent = 0;
  acknowledged = 0;
  readonly counts = new Map<string, { superseded: number; lost: number }>();
  readonly #maxBytes: number;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  note(reports: readonly NewReport[]): void {
    for (const report of reports) this.#add(report);
    if (this.#sizeBytes <= this.#maxBytes) return;
    const before = this.waiting.length;
    for (const stage of [1, 2, 3, 4])
      for (const one of this.waiting.slice())
        if (this.#sizeBytes > (this.#maxBytes * 15) / 16 && this.#stageOf(one) === stage)
          this.#leaveOut(one, stage);
    if (this.waiting.length === before) return;
    for (const one of this.waiting.slice())
      if (one.report.body.$case === 'thinned' && one.sequence > this.sent) this.#leaveOut(one, 1);
    const kinds = [...this.counts].toSorted(([a], [b]) => (a < b ? -1 : 1));
    const value = thinnedReport(
      kinds.map(([kind, { superseded, lost }]) => {
        const at = lost === 0 ? null : timeMs;
        return { kind, superseded, lost, firstLostMs: at, lastLostMs: at };
      }),
    );
    this.#add({ subject: '', weight: 'lasting', body: { $case: 'thinned', value } });
  }

  acknowledge(through: number): void {
    this.acknowledged = through;
    this.waiting = this.waiting.filter(({ sequence }) => sequence > through);
  }

  #add(report: NewReport): void {
    this.last += 1;
    this.waiting.push({ sequence: this.last, report, sizeBytes: sizeOf(report) });
  }

  get #sizeBytes(): number {
    return this.waiting.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  /** In which stage one goes; 5: never. */
  #stageOf({ sequence, report }: Modelled): number {
    const { weight, subject, body } = report;
    if (sequence <= this.sent || body.$case === 'thinned') return 5;
    if (weight === 'lasting') return 4;
    const isSaidLater = this.waiting.some(
      (later) =>
        later.sequence > sequence &&
        later.report.body.$case === body.$case &&
        later.report.subject === subject,
    );
    if (!isSaidLater) return 3;
    return weight === 'state' ? 1 : 2;
  }

  #leaveOut(one: Modelled, stage: number): void {
    this.waiting = this.waiting.filter((other) => other !== one);
    const kind = one.report.body.$case;
    const count = this.counts.get(kind) ?? { superseded: 0, lost: 0 };
    count[stage <= 2 ? 'superseded' : 'lost'] += 1;
    this.counts.set(kind, count);
  }
}

void t.test(
  'whatever is noted, sent and acknowledged, every number waits, was taken, or is counted',
  async (t) => {
    const rounds = Number(process.env['STILLPOINT_TEST_ROUNDS'] ?? 5);
    for (let round = 0; round < rounds; round++) {
      const random = randomFrom(seed + round);
      const maxBytes = 3_000 + Math.floor(random() * 30_000);
      const { open } = await outboxFor(t, { maxBytes, now: () => timeMs });
      const outbox = open();
      const model = new Model(maxBytes);
      for (let step = 0; step < 150; step++) {
        act(random, outbox, model);
        const found = waiting(outbox);
        const expected = model.waiting.map(({ sequence, report }) => `${sequence} ${report.body.$case}`);
        if (JSON.stringify(found) !== JSON.stringify(expected)) {
          t.same(found, expected, `seed ${seed}, round ${round}, step ${step}`);
          return;
        }
        const left = [...model.counts.values()].reduce(
          (sum, { superseded, lost }) => sum + superseded + lost,
          0,
        );
        const taken = model.last - model.waiting.length - left;
        if (taken < 0 || outbox.state.lastSequence !== model.last)
          t.fail(`seed ${seed}: ${model.last} numbers`);
      }
      compareThinned(t, outbox, model);
    }
    t.pass(`${rounds} rounds`);
  },
);

function act(random: () => number, outbox: Outbox, model: Model): void {
  const any = (count: number): number => Math.floor(random() * count);
  const [first] = model.waiting;
  const kind = random();
  if (kind < 0.12 && first !== undefined) {
    const through = first.sequence + any(model.last - first.sequence + 1);
    outbox.markSent(through);
    model.sent = Math.max(model.sent, through);
  } else if (kind < 0.2 && model.sent > model.acknowledged) {
    const through = model.acknowledged + 1 + any(model.sent - model.acknowledged);
    outbox.acknowledge(through);
    model.acknowledge(through);
  } else {
    const reports = Array.from({ length: 1 + any(6) }, () => anyReport(any));
    outbox.note({ reports });
    model.note(reports);
  }
}

function anyReport(any: (count: number) => number): NewReport {
  const kind = any(6);
  if (kind <= 1) return machine(`m${any(4)}`, ['running', 'paused', 'shut-off'][any(3)]);
  if (kind <= 3) return job(`j${any(4)}`, ['snapshotting', 'merging', 'retaining', 'finished'][any(4)] ?? '');
  return alert(`a${any(3)}`, 'x'.repeat(any(600)));
}

function compareThinned(test: Test, outbox: Outbox, model: Model): void {
  const newest = outbox
    .pending(0, { count: 1e6, bytes: 1e9 })
    .findLast(({ report }) => report.body?.$case === 'thinned');
  if (newest?.report.body?.$case !== 'thinned') return;
  const told = newest.report.body.value.kinds.map(({ kind, superseded, lost }) => ({
    kind,
    superseded: Number(superseded),
    lost: Number(lost),
  }));
  const expected = [...model.counts].map(([kind, count]) => ({ kind, ...count }));
  test.same(
    told.toSorted((a, b) => (a.kind < b.kind ? -1 : 1)),
    expected.toSorted((a, b) => (a.kind < b.kind ? -1 : 1)),
    'the newest report of what was left out says all of it',
  );
}
