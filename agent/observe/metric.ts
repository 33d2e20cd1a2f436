import type { HostStatus } from './hostStatus.ts';
import type { PlaceFigures } from './places.ts';
import type { Problem } from './problems.ts';
import type { OutboxFigures, ReloadFigures } from './serviceFigures.ts';

/** All that metrics are made of. */
export interface Observation {
  readonly status: HostStatus;
  readonly problems: readonly Problem[];
  readonly journalBytes: number;
  readonly places: readonly PlaceFigures[];
  /** Bytes since the service was started, by the name of the step. */
  readonly jobBytes: ReadonlyMap<string, number>;
  /** null: there is none, here and below. */
  readonly configReload: ReloadFigures | null;
  readonly outbox: OutboxFigures | null;
  readonly waitingAlerts: number | null;
}

/** A figure, with the values of the metric's labels in their order. */
export interface Sample {
  readonly labels: readonly string[];
  readonly value: number;
}

/** One metric; docs/METRICS.md is made of these. */
export interface Metric {
  readonly name: string;
  /** A counter begins at zero with the service. */
  readonly type: 'gauge' | 'counter';
  readonly help: string;
  readonly labels: readonly string[];
  samples(observation: Observation): readonly Sample[];
}

/** A figure of a metric without labels; none where it is not known. */
export function one(value: number | null | undefined): readonly Sample[] {
  return value === null || value === undefined ? [] : [{ labels: [], value }];
}

/** A figure with labels; none where it is not known. */
export function labelled(labels: readonly string[], value: number | null | undefined): readonly Sample[] {
  return value === null || value === undefined ? [] : [{ labels, value }];
}

/** Seconds, as Prometheus has instants and durations. */
export function seconds(ms: number): number {
  return ms / 1000;
}

/** The same of what may not be known. */
export function secondsOrNull(ms: number | null): number | null {
  return ms === null ? null : seconds(ms);
}
