import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DomainXml } from '../hypervisor/domainXml.ts';
import { HypervisorError } from '../hypervisor/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { BootFacts, BootPlan } from './bootPlan.ts';
import { statusOf } from './machineStatus.ts';
import { parsePicture } from './picture.ts';

const pollMs = 500;
const agentAnswerMs = 5_000;
/** A screen that has not changed for so long shows what it is going to show. */
const stableMs = 10_000;
const pictureEveryMs = 2000;

type Verdict = Pick<NonNullable<BootFacts['result']>, 'ok' | 'evidence' | 'detail'>;

/** Watches a machine that was started in isolation until it has shown that it works, or has not in time. */
export async function watchGuest(
  hypervisor: Hypervisor,
  plan: BootPlan,
  signal: AbortSignal,
): Promise<Verdict> {
  const startedAt = performance.now();
  const screen = new Screen(hypervisor, plan);
  for (;;) {
    signal.throwIfAborted();
    const status = await statusOf(hypervisor, plan.machine.uuid);
    if (status?.state !== 'running') {
      const how = status === undefined ? 'it is gone' : `${status.state}, ${status.reason}`;
      return { ok: false, evidence: null, detail: `the machine stopped: ${how}` };
    }
    const isLate = performance.now() - startedAt > plan.deadlineMs;
    const verdict = await look(hypervisor, plan, screen, isLate);
    if (verdict !== undefined) return verdict;
    await sleep(pollMs, undefined, { signal });
  }
}

async function look(
  hypervisor: Hypervisor,
  plan: BootPlan,
  screen: Screen,
  isLate: boolean,
): Promise<Verdict | undefined> {
  const { expect, deadlineMs, machine } = plan;
  const seconds = Math.round(deadlineMs / 1000);
  if (expect !== null) {
    if ((await readFile(plan.serialLog, 'utf8')).includes(expect))
      return { ok: true, evidence: 'serial', detail: `"${expect}" appeared on the serial port` };
    if (!isLate) return undefined;
    return {
      ok: false,
      evidence: null,
      detail: `"${expect}" did not appear on the serial port within ${seconds} s`,
    };
  }
  const live = DomainXml.parse(await hypervisor.definition(machine.uuid, 'live'));
  if (live.guestAgent === 'connected' && (await agentAnswers(hypervisor, machine.uuid)))
    return { ok: true, evidence: 'agent', detail: 'the guest agent answers' };
  const isStable = live.hasScreen && (await screen.isStable());
  // A screen tells less than the agent: that is given its time first.
  if (isStable && (isLate || live.guestAgent === undefined))
    return {
      ok: true,
      evidence: 'screen',
      detail: `the screen shows something and has hardly changed for ${stableMs / 1000} s: look at the picture`,
    };
  if (!isLate) return undefined;
  return {
    ok: false,
    evidence: null,
    detail: `no guest agent and no picture that stays the same within ${seconds} s`,
  };
}

/** A guest that was resumed has its end of the channel open from the first moment on, also if it hangs: it is asked. */
async function agentAnswers(hypervisor: Hypervisor, uuid: string): Promise<boolean> {
  try {
    await hypervisor.askGuest(uuid, agentAnswerMs);
    return true;
  } catch (error) {
    // It is asked again until the guest's time is over.
    if (error instanceof HypervisorError) return false;
    throw error;
  }
}

/** Takes the last picture of a machine's screen; `null` where there is none. */
export async function takePicture(hypervisor: Hypervisor, plan: BootPlan): Promise<string | null> {
  const status = await statusOf(hypervisor, plan.machine.uuid);
  if (status?.state !== 'running') return null;
  const live = DomainXml.parse(await hypervisor.definition(plan.machine.uuid, 'live'));
  if (!live.hasScreen) return null;
  const file = join(plan.directory, 'screen');
  await rm(file, { force: true });
  const mime = await hypervisor.screenshot(plan.machine.uuid, file);
  return `${file}${mime === 'image/png' ? '.png' : '.ppm'}`;
}

/** The pictures of a screen. */
class Screen {
  readonly #hypervisor: Hypervisor;
  readonly #plan: BootPlan;
  #lastAt = -Infinity;
  #last: Buffer = Buffer.alloc(0);
  #since = 0;
  #isBlank = true;

  constructor(hypervisor: Hypervisor, plan: BootPlan) {
    this.#hypervisor = hypervisor;
    this.#plan = plan;
  }

  async isStable(): Promise<boolean> {
    const now = performance.now();
    if (now - this.#lastAt >= pictureEveryMs) {
      this.#lastAt = now;
      await this.#takeOne(now);
    }
    return !this.#isBlank && this.#lastAt - this.#since >= stableMs;
  }

  async #takeOne(now: number): Promise<void> {
    const file = join(this.#plan.directory, 'look');
    await rm(file, { force: true });
    await this.#hypervisor.screenshot(this.#plan.machine.uuid, file);
    const { pixels, channels } = parsePicture(await readFile(file));
    if (!isAlike(pixels, this.#last)) this.#since = now;
    this.#last = pixels;
    // Nothing but a cursor.
    this.#isBlank = isAlike(pixels, Buffer.alloc(pixels.length, pixels.subarray(0, channels)));
  }
}

/** A cursor that blinks, or a clock, changes less of a screen than this. */
const blinkShare = 0.001;

function isAlike(a: Buffer, b: Buffer): boolean {
  if (a.length !== b.length) return false;
  let different = 0;
  for (let at = 0; at < a.length; at += 1) if (a[at] !== b[at]) different += 1;
  return different <= a.length * blinkShare;
}
