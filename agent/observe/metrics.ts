import { Counter, Gauge, prometheusContentType, Registry } from 'prom-client';
import { hostMetrics } from './hostMetrics.ts';
import { machineMetrics } from './machineMetrics.ts';
import type { Metric, Observation } from './metric.ts';
import { storageMetrics } from './storageMetrics.ts';

/** All metrics, in the order in which they are told. */
export const metrics: readonly Metric[] = [...hostMetrics, ...machineMetrics, ...storageMetrics];

/** Content type of `metricsText`: the text format of Prometheus, version 0.0.4. */
export const metricsContentType = prometheusContentType;

/** What was observed, in the text format of Prometheus. A metric without a figure is left out. */
export async function metricsText(observation: Observation): Promise<string> {
  // Made anew each time: what has no figure now must not keep the one that it had before.
  const registry = new Registry();
  for (const metric of metrics) register(registry, metric, observation);
  return registry.metrics();
}

function register(registry: Registry, metric: Metric, observation: Observation): void {
  const { name, help, labels: labelNames, type } = metric;
  const samples = metric.samples(observation);
  if (samples.length === 0) return;
  const about = { name, help, labelNames: [...labelNames], registers: [registry] };
  const counter = type === 'counter' ? new Counter(about) : null;
  const gauge = counter === null ? new Gauge(about) : null;
  for (const { labels, value } of samples) {
    const named = Object.fromEntries(labelNames.map((label, index) => [label, labels[index] ?? '']));
    counter?.inc(named, value);
    gauge?.set(named, value);
  }
}
