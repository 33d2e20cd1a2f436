/**
 * Switches that take one cure out of the product, so that a test can show that the cure is what prevents the
 * damage. They exist for the project's own tests and are never set otherwise; whoever composes the program
 * warns on every start with one set.
 */
export const testSwitches = [
  /** Trap 1: save with the definition as libvirt gives it, and do not compare the chain before the guest runs. */
  'keep-backing-stores',
  /** Trap 2: take a reported completion of a block stream for durable, and do not look at the image. */
  'trust-stream-completion',
  /** Trap 4: neither check nor watch the space of a merge, and do not resume a guest that paused on it. */
  'ignore-full-target',
] as const;

export type TestSwitch = (typeof testSwitches)[number];

const variable = 'STILLPOINT_TEST_SWITCHES';

/** The switches that the environment sets. */
export function activeTestSwitches(environment: NodeJS.ProcessEnv = process.env): readonly TestSwitch[] {
  const named = (environment[variable] ?? '').split(',');
  return testSwitches.filter((name) => named.includes(name));
}

/** True when a test has taken this cure out. */
export function isTestSwitchOn(name: TestSwitch): boolean {
  return activeTestSwitches().includes(name);
}
