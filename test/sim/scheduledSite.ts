import { Writable } from 'node:stream';
import * as z from 'zod';

import { Scheduler } from '../../agent/service/scheduler.ts';
import type { Config } from '../../config/schema.ts';
import { createLogger } from '../../common/log.ts';
import { eventually } from '../lab/eventually.ts';
import { noteSaid } from '../secrets.ts';
import { ms } from './scheduledMachine.ts';
import { type LivingAgent, Site, type SiteOptions } from './site.ts';

const minuteMs = 60_000;

const saidSchema = z.looseObject({
  msg: z.string(),
  machine: z.string().optional(),
  jobId: z.string().nullish(),
  slot: z.string().optional(),
});

/** A line of the log. */
export type Said = z.output<typeof saidSchema>;

/** What may kill the service: called at each moment of it, and at each durable write. */
export type Fate = (moment: string) => boolean;

/** A simulated host with the service's scheduler, on a clock that the test moves. */
export class ScheduledSite implements AsyncDisposable {
  readonly site: Site;
  readonly said: Said[] = [];
  nowMs: number;
  /** By how much the clock was set. */
  #setByMs = 0;
  #service: { readonly living: LivingAgent; readonly scheduler: Scheduler } | undefined;

  private constructor(site: Site, time: string) {
    this.site = site;
    this.nowMs = ms(time);
  }

  /** It is `time` (UTC), and the machine `m` has this policy. */
  static async create(
    policy: Readonly<Record<string, unknown>>,
    time: string,
    options: Omit<SiteOptions, 'policy'> = {},
  ): Promise<ScheduledSite> {
    const whole = { mode: 'disk', timeZone: 'UTC', ...policy };
    return new ScheduledSite(await Site.create({ targets: ['vda'], ...options, policy: whole }), time);
  }

  get agent(): LivingAgent['agent'] {
    return this.#required().living.agent;
  }

  get scheduler(): Scheduler {
    return this.#required().scheduler;
  }

  get isDead(): boolean {
    return this.#required().living.life.isDead;
  }

  #required() {
    if (this.#service === undefined) throw new Error('no service runs');
    return this.#service;
  }

  /** The service starts, after whatever became of the one before; with another policy, if one is given. */
  async start({
    fate = () => false,
    meanwhile = () => undefined,
    policy,
  }: {
    fate?: Fate;
    /** What happens in the world at a moment of the service. */
    meanwhile?: (moment: string) => Promise<void> | void;
    policy?: SiteOptions['policy'];
  } = {}): Promise<void> {
    if (this.#service !== undefined) this.site.buryOwners();
    const decide = (moment: string, { life }: LivingAgent): void => {
      if (!life.isDead && fate(moment)) life.die();
    };
    const listen = async (moment: string, self: LivingAgent): Promise<void> => {
      decide(moment, self);
      await meanwhile(moment);
    };
    const living = this.site.openAgent(listen, decide, policy);
    const log = createLogger({ destination: this.#memory() });
    const clock = () => ({ wallMs: this.nowMs, monotonicMs: this.nowMs - this.#setByMs });
    this.#service = { living, scheduler: new Scheduler({ agent: living.agent, log, clock }) };
    await living.life.live(() => living.agent.recoverOrphans());
    await this.refresh();
  }

  #memory(): Writable {
    return new Writable({
      write: (line: Buffer, _, done) => {
        noteSaid('the log of a simulated service', String(line));
        this.said.push(saidSchema.parse(JSON.parse(String(line))));
        done();
      },
    });
  }

  /** Another configuration is in force; what `refresh` does comes a moment later. */
  configure(policy: SiteOptions['policy'], others: Readonly<Record<string, unknown>> = {}): void {
    this.apply(this.site.config(policy, others));
  }

  /** As `configure`, with all of a configuration. */
  apply(config: Config): void {
    const { living, scheduler } = this.#required();
    living.agent.follow({ config, storages: living.storages });
    scheduler.follow();
  }

  /** The service looks which machines there are, and does what is due. */
  async refresh(): Promise<void> {
    const { living, scheduler } = this.#required();
    await living.life.live(() => scheduler.refresh());
    await this.look();
  }

  /** Somebody sets the clock to a time (UTC). */
  setClock(time: string): void {
    this.#setByMs += ms(time) - this.nowMs;
    this.nowMs = ms(time);
  }

  /** Does what is due now, to its end. */
  async look(): Promise<void> {
    const { living, scheduler } = this.#required();
    await living.life.live(async () => {
      scheduler.lookAtDue();
      await scheduler.settled();
    });
  }

  /** Does what is due now, without waiting for its end. */
  begin(): void {
    const { living, scheduler } = this.#required();
    void living.life.live(async () => scheduler.lookAtDue());
  }

  /** Goes on to a time (UTC) in sleeps as long as the scheduler says, and does what is due on the way. */
  async until(time: string): Promise<this> {
    const untilMs = ms(time);
    while (this.nowMs < untilMs && !this.isDead) {
      const { living, scheduler } = this.#required();
      const sleepMs = (await living.life.live(async () => scheduler.lookAtDue())) ?? minuteMs;
      this.nowMs = Math.min(untilMs, this.nowMs + Math.max(1, sleepMs));
      await this.look();
    }
    return this;
  }

  /** Waits until something was said. */
  async untilSaid(msg: RegExp, machine?: string): Promise<void> {
    await eventually(() => this.lines(msg).some((line) => machine === undefined || line.machine === machine));
  }

  lines(msg: RegExp): readonly Said[] {
    return this.said.filter((line) => msg.test(line.msg));
  }

  /** Slots of the runs that were begun, as minutes of UTC. */
  begunSlots(machine = 'm'): readonly string[] {
    return this.lines(/^scheduled backup begun$/)
      .filter((line) => line.machine === machine)
      .map(({ slot = '' }) => slot.slice(0, 16));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#service !== undefined && !this.isDead) await this.#service.scheduler.end();
    await this.site[Symbol.asyncDispose]();
  }
}
