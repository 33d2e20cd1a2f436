import { policyFor } from '../../config/policy.ts';
import type { Config } from '../../config/schema.ts';
import { hostTimeZone } from '../retain/periods.ts';
import { type Timetable, timetableOf } from '../schedule/timetable.ts';
import { ZoneClock } from '../schedule/zone.ts';

/** A machine whose policy has a schedule. */
export interface ScheduledMachine {
  readonly uuid: string;
  readonly name: string;
  readonly table: Timetable;
  /**
   * Which slots there are, as text: what is remembered about others means nothing. Windows, jitter and retries are
   * left out, because a slot that is waiting when they change is still to be run.
   */
  readonly slots: string;
  /** The policy has rules for what stays. */
  readonly prunes: boolean;
}

/** The timetables of machines, as the policies say. */
export class Timetables {
  readonly #config: Config;
  readonly #configPath: string;
  readonly #clocks = new Map<string, ZoneClock>();
  readonly #hostZone = hostTimeZone();

  constructor({ config, configPath }: { readonly config: Config; readonly configPath: string }) {
    this.#config = config;
    this.#configPath = configPath;
  }

  /** Whether any policy has a schedule. */
  get any(): boolean {
    return Object.values(this.#config.policies).some(({ schedule }) => schedule !== undefined);
  }

  /**
   * A machine with its timetable; null where it is excluded, or backed up by command only.
   * @throws ConfigError NO_STORAGE
   */
  of({ uuid, name }: { readonly uuid: string; readonly name: string }): ScheduledMachine | null {
    const decision = policyFor(this.#config, name, this.#configPath);
    if (decision.kind === 'excluded' || decision.policy.schedule === null) return null;
    const { schedule, timeZone = this.#hostZone, keep, replicate } = decision.policy;
    const { cron, every } = schedule;
    const table = timetableOf(schedule, { clock: this.#clockOf(timeZone), seed: uuid });
    const slots = JSON.stringify(every === undefined ? { cron, timeZone } : { every });
    const prunes = keep !== null || replicate.some((rule) => (rule.keep ?? null) !== null);
    return { uuid, name, table, slots, prunes };
  }

  #clockOf(timeZone: string): ZoneClock {
    const clock = this.#clocks.get(timeZone) ?? new ZoneClock(timeZone);
    this.#clocks.set(timeZone, clock);
    return clock;
  }
}
