import { messageOf } from '../../common/errors.ts';
import type { JobDefinition, Step, StepContext } from '../jobs/step.ts';
import { lowerMarker, raiseMarker } from '../snapshot/snapshottingMarker.ts';

/** What is added to the deadlines of the calls, for what comes between them. */
const marginMs = 60_000;

interface MarkedFacts {
  readonly machine: { readonly name: string };
  readonly settings: { readonly runDirectory: string; readonly monitoringMarker: boolean };
}

/** Between which steps a machine is being snapshotted, and how long that may take. */
export interface MarkedWindow<Facts> {
  readonly first: string;
  readonly last: string;
  readonly atMostMs: (facts: Facts) => number;
}

/**
 * A job that says by a file that its machine is being snapshotted, for a monitoring that would take the pause for a
 * failure. The file is there before the first step of the window, and goes with the end of the last one, or when the
 * machine has been put in order. A file that cannot be written fails no backup.
 */
export function withMarker<Facts extends MarkedFacts>(
  definition: JobDefinition<Facts>,
  window: MarkedWindow<Facts>,
): JobDefinition<Facts> {
  const around = (step: Step<Facts>): Step<Facts> => {
    if (step.name !== window.first && step.name !== window.last) return step;
    return {
      ...step,
      act: async (context) => {
        if (step.name === window.first) await raise(context, window.atMostMs(context.facts));
        try {
          await step.act(context);
        } finally {
          if (step.name === window.last) await lower(context);
        }
      },
    };
  };
  return {
    ...definition,
    steps: (facts) => {
      const steps = definition.steps(facts);
      return facts.settings.monitoringMarker ? steps.map(around) : steps;
    },
    settle: async (context, cause) => {
      try {
        return await definition.settle(context, cause);
      } finally {
        if (context.facts.settings.monitoringMarker) await lower(context);
      }
    },
  };
}

type Context = StepContext<MarkedFacts>;

async function raise(context: Context, atMostMs: number): Promise<void> {
  const { machine, settings } = context.facts;
  const nowMs = Date.now();
  try {
    await raiseMarker(settings.runDirectory, {
      machine: machine.name,
      job: context.jobId,
      since: new Date(nowMs).toISOString(),
      untilAtMost: new Date(nowMs + atMostMs + marginMs).toISOString(),
    });
  } catch (error) {
    context.warn(`monitoring is not told of the snapshot: ${messageOf(error)}`);
  }
}

async function lower(context: Context): Promise<void> {
  try {
    const { machine, settings } = context.facts;
    await lowerMarker(settings.runDirectory, machine.name);
  } catch (error) {
    context.warn(`the marker of the snapshot is left: ${messageOf(error)}`);
  }
}
