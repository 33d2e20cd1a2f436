import type { QemuImageErrorCode } from '../common/qemuImage.ts';
import type { ConfigErrorCode } from '../config/errors.ts';
import type { StorageErrorCode } from '../storage/errors.ts';
import type { RepositoryErrorCode } from '../storage/repository/errors.ts';
import type { NbdErrorCode } from '../nbd/errors.ts';
import type { AgentErrorCode } from './errors.ts';
import type { DomainXmlErrorCode } from './hypervisor/domainXmlError.ts';
import type { HypervisorErrorCode } from './hypervisor/errors.ts';
import type { JobErrorCode } from './jobs/errors.ts';
import type { MergeErrorCode } from './merge/errors.ts';
import type { ObserveErrorCode } from './observe/errors.ts';
import type { RestoreErrorCode } from './restore/errors.ts';
import type { SnapshotErrorCode } from './snapshot/errors.ts';

/** Every code of every error that a call of the agent, or the error of one of its jobs, can carry. */
export type ServiceErrorCode =
  | AgentErrorCode
  | ConfigErrorCode
  | DomainXmlErrorCode
  | HypervisorErrorCode
  | JobErrorCode
  | MergeErrorCode
  | NbdErrorCode
  | ObserveErrorCode
  | QemuImageErrorCode
  | RepositoryErrorCode
  | RestoreErrorCode
  | SnapshotErrorCode
  | StorageErrorCode
  /** What no module foresaw. */
  | 'INTERNAL_ERROR';
