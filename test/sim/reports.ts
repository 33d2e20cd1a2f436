import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Test } from 'tap';

import { Outbox } from '../../agent/report/outbox.ts';
import type { NewReport } from '../../agent/report/report.ts';
import type { ReportStore } from '../../controller/reportStore.ts';

/** An alert: it lasts. `text` makes it as long as one wants. */
export function alert(key: string, text = ''): NewReport {
  const error = { code: 'TEST', message: text, hint: '', retryable: false };
  return { subject: key, weight: 'lasting', body: { $case: 'alert', value: { key, raised: true, error } } };
}

/** How a machine is: only the newest counts. */
export function machine(uuid: string, state = 'running'): NewReport {
  const value = {
    uuid,
    name: uuid,
    present: true,
    state,
    stateReason: '',
    persistent: true,
    autostart: false,
  };
  return { subject: uuid, weight: 'state', body: { $case: 'machine', value } };
}

/** A job on its way, or at its end. */
export function job(id: string, state: string): NewReport {
  const ended = state === 'finished';
  const value = {
    id,
    kind: 'backup',
    machineUuid: '',
    machineName: 'm',
    state,
    ended,
    needsOperator: false,
    createdTime: undefined,
    endedTime: undefined,
    steps: [],
    error: undefined,
    backupId: '',
    pointInTime: '',
  };
  return { subject: id, weight: ended ? 'lasting' : 'progress', body: { $case: 'job', value } };
}

/** What waits in an outbox: numbers, and what they are. */
export function waiting(outbox: Outbox): readonly string[] {
  return outbox
    .pending(0, { count: 100_000, bytes: 2 ** 40 })
    .map(({ sequence, report }) => `${sequence} ${report.body?.$case}`);
}

/** A new place for an outbox, removed with the test; `open` opens it, as often as wanted. */
export async function outboxFor(
  test: Test,
  settings: { readonly maxBytes?: number; readonly now?: () => number } = {},
): Promise<{
  readonly path: string;
  readonly open: (options?: { isDamaged?: boolean }) => Outbox;
}> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-outbox-'));
  const path = join(directory, 'outbox.sqlite');
  const opened: Outbox[] = [];
  test.teardown(async () => {
    for (const outbox of opened) outbox[Symbol.dispose]();
    await rm(directory, { recursive: true });
  });
  const open = (options: { isDamaged?: boolean } = {}): Outbox => {
    const outbox = new Outbox(path, { maxBytes: 2 ** 30, ...settings, ...options });
    opened.push(outbox);
    return outbox;
  };
  return { path, open };
}

/** What a receiver has of one host, and what its host says that it has left out. */
export interface Received {
  /** Sequence numbers in the order of their arrival. */
  readonly sequences: readonly number[];
  /** Keys of the alerts in the order of their arrival. */
  readonly alerts: readonly string[];
  /** Reports that were left out, as the newest report about that says. */
  readonly thinned: ReadonlyMap<string, { readonly superseded: number; readonly lost: number }>;
}

/** What a store has of a host of which there is one generation. */
export function receivedIn(store: ReportStore): Received {
  const sequences: number[] = [];
  const alerts: string[] = [];
  let thinned = new Map<string, { superseded: number; lost: number }>();
  for (const { report } of store.reports()) {
    sequences.push(Number(report.sequence));
    if (report.body?.$case === 'alert') alerts.push(report.body.value.key);
    if (report.body?.$case === 'thinned')
      thinned = new Map(
        report.body.value.kinds.map(({ kind, superseded, lost }) => [
          kind,
          { superseded: Number(superseded), lost: Number(lost) },
        ]),
      );
  }
  return { sequences, alerts, thinned };
}

/** Why a host and its receiver do not agree; undefined: each number has arrived once, in its order, or is counted. */
export function disagreement({ sequences, thinned }: Received, lastSequence: number): string | undefined {
  const wrong = sequences.findIndex((sequence, at) => sequence <= (sequences[at - 1] ?? 0));
  if (wrong !== -1) return `report ${sequences[wrong]} has arrived after ${sequences[wrong - 1]}`;
  const left = [...thinned.values()].reduce((sum, { superseded, lost }) => sum + superseded + lost, 0);
  if (sequences.length + left === lastSequence) return undefined;
  return `${sequences.length} have arrived and ${left} were left out, of ${lastSequence}`;
}
