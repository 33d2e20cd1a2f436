import type { BandwidthLimit } from '../../common/bandwidth.ts';

/** What a job on a machine is held to; its policy may change it while the job runs. */
export interface JobLimits {
  /** Of the reading of volumes. */
  readonly read: BandwidthLimit;
  /** Of the copying back into one image. */
  readonly merge: BandwidthLimit;
}

/** What was asked for when the job was begun. */
export interface AskedLimits {
  readonly readBandwidthBytesPerSecond: number;
  readonly mergeBandwidthBytesPerSecond: number;
}

/** The limits of a job. */
export type LimitsOf = (facts: {
  readonly machine: { readonly name: string };
  readonly settings: AskedLimits;
}) => JobLimits;
