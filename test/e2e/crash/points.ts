import type { Test } from 'tap';
import type { RunEnd } from './agentRun.ts';

/**
 * Steps that are known today. The matrices take their points from a run of the engine; this list only proves
 * that the recording sees them.
 */
export const knownSteps = {
  backup: [
    'preflight',
    'prepare',
    'guard',
    'save',
    'swap',
    'restore',
    'resume',
    'stow',
    'merge',
    'flush',
    'unguard',
    'retain',
    'commit',
    'cleanup',
  ],
  restore: ['stage', 'stop', 'swap', 'define', 'start', 'cleanup'],
  files: ['stage', 'swap', 'cleanup'],
} as const;

/** The points of an undisturbed run, each once, in order; among them those of every known step. */
export function recordedPoints(
  t: Test,
  run: RunEnd,
  kind: 'backup' | 'restore',
  steps: readonly string[],
): readonly string[] {
  const points = [...new Set(run.points)];
  const known = steps.flatMap((step) => [`${kind}/before:${step}`, `${kind}/after:${step}`]);
  t.same(
    known.filter((point) => !points.includes(point)),
    [],
    'every known step reports its points',
  );
  return points;
}

/** True from `first` on, in the order in which the points were recorded. */
export function isFrom(points: readonly string[], first: string, point: string): boolean {
  const start = points.indexOf(first);
  if (start < 0) throw new Error(`no point ${first} was recorded`);
  return points.indexOf(point) >= start;
}
