import { execa } from 'execa';
import type { Lab } from '../test/lab/lab.ts';
import { paired, type Summary, summarize } from './statistics.ts';

const roundsDefault = 15;

/** One way to do the job that is measured. */
export interface Flow {
  /** Not measured: brings about what the run is to find. */
  readonly prepare?: () => Promise<void>;
  readonly run: () => Promise<void>;
  /** Not measured: takes away what the run has left, so that the next one begins alike. */
  readonly cleanUp: () => Promise<void>;
}

/** The number of rounds on the command line of a bench. @throws Error with its usage */
export function roundsFrom(bench: string, text = process.argv[2]): number {
  const rounds = Number(text ?? roundsDefault);
  if (Number.isInteger(rounds) && rounds >= 1) return rounds;
  throw new Error(`usage: npm run bench -- ${bench} [ROUNDS]`);
}

/** What was measured against what; `more` are commands that print their version. */
export async function toolVersions(
  lab: Lab,
  more: Readonly<Record<string, readonly [string, ...string[]]>> = {},
): Promise<Readonly<Record<string, string>>> {
  const firstLine = async (command: string, ...args: string[]): Promise<string> => {
    const { stdout, stderr } = await execa(command, args, { reject: false });
    return `${stdout}\n${stderr}`.trim().split('\n')[0] ?? '';
  };
  const others: Record<string, string> = {};
  for (const [name, [command, ...args]] of Object.entries(more))
    others[name] = await firstLine(command, ...args);
  return {
    libvirt: (await lab.virsh('--version')).trim(),
    qemu: await firstLine('qemu-img', '--version'),
    nbdcopy: await firstLine('nbdcopy', '--version'),
    virtnbdbackup: await firstLine('virtnbdbackup', '--version'),
    ...others,
  };
}

/**
 * Runs all flows in turn, round after round, so that what happens on the host meets all of them; ratios are
 * those of one round. The first flow is ours, the others are what it is compared with. One round in front is not
 * counted.
 */
export async function measureInTurn(
  lab: Lab,
  flows: Readonly<Record<string, Flow>>,
  rounds: number,
): Promise<{
  readonly durationMs: Readonly<Record<string, Summary>>;
  readonly ratio: Readonly<Record<string, Summary>>;
}> {
  const names = Object.keys(flows);
  const durations = new Map<string, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round <= rounds; round += 1) {
    for (const [name, flow] of Object.entries(flows)) {
      await flow.prepare?.();
      // What the flow before has left unwritten would be written in the time of this one.
      await lab.run('sync');
      const beginMs = performance.now();
      await flow.run();
      const durationMs = performance.now() - beginMs;
      await flow.cleanUp();
      if (round > 0) durations.get(name)?.push(durationMs);
      process.stderr.write(`round ${round}/${rounds}: ${name} ${durationMs.toFixed(0)} ms\n`);
    }
  }
  const [ours = '', ...others] = names;
  const of = (name: string): readonly number[] => durations.get(name) ?? [];
  return {
    durationMs: Object.fromEntries(names.map((name) => [name, summarize(of(name))])),
    ratio: Object.fromEntries(
      others.map((name) => [
        `${ours}/${name}`,
        summarize(
          paired(of(ours), of(name), (a, b) => a / b),
          3,
        ),
      ]),
    ),
  };
}
