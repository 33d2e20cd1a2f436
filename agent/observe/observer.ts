import type { Agent } from '../agent.ts';
import type { HostWatch } from './hostWatch.ts';
import type { Observation } from './metric.ts';
import { journalBytes, placesOf } from './places.ts';
import { problemsOf } from './problems.ts';
import type { ServiceFigures } from './serviceFigures.ts';

/** A restart of libvirt, or a short silence of a storage, is no problem. */
const settleMs = 60_000;

/** Finds out what there is to tell of a host. */
export class Observer {
  readonly #agent: Agent;
  readonly #watch: HostWatch;
  readonly #figures: ServiceFigures;

  constructor(agent: Agent, watch: HostWatch, figures: ServiceFigures) {
    this.#agent = agent;
    this.#watch = watch;
    this.#figures = figures;
  }

  /** @throws what `HostWatch.look` throws, and the system's errors */
  async observe(): Promise<Observation> {
    const { config } = this.#agent.parts;
    const { alerts, agent } = config;
    const status = await this.#watch.look();
    const bytes = await journalBytes(agent.stateDir);
    const places = await placesOf(config, status);
    const { jobBytes, configReload, outbox, waitingAlerts } = this.#figures;
    return {
      status,
      problems: problemsOf(status, { overdueMs: alerts.overdueSeconds * 1000, settleMs }),
      journalBytes: bytes,
      places,
      jobBytes: jobBytes.totals,
      configReload: configReload?.() ?? null,
      outbox: outbox?.() ?? null,
      waitingAlerts: waitingAlerts?.() ?? null,
    };
  }
}
