const variable = 'STILLPOINT_TEST_CRASH_AT';

/**
 * For the project's own tests: kills this process, as a power cut of the agent would, at the named moment of a
 * job, e.g. `backup/before:save`. `undefined` when the environment names none, as always in real life.
 */
export function crashPointOf(environment: NodeJS.ProcessEnv): ((point: string) => void) | undefined {
  const wanted = environment[variable];
  if (wanted === undefined) return undefined;
  return (point) => {
    if (point === wanted) process.kill(process.pid, 'SIGKILL');
  };
}
