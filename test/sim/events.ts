import type { HypervisorEvent } from '../../agent/hypervisor/hypervisor.ts';

type Lifecycle = Extract<HypervisorEvent, { kind: 'lifecycle' }>;

/** `virDomainEventType` with the detail numbers that libvirt sends (`virDomainEvent*DetailType`). */
const lifecycle = {
  definedAdded: ['defined', 0],
  definedUpdated: ['defined', 1],
  undefinedRemoved: ['undefined', 0],
  startedBooted: ['started', 0],
  startedRestored: ['started', 2],
  suspendedPaused: ['suspended', 0],
  suspendedIoError: ['suspended', 2],
  suspendedRestored: ['suspended', 4],
  resumedUnpaused: ['resumed', 0],
  resumedFromSnapshot: ['resumed', 2],
  stoppedShutdown: ['stopped', 0],
  stoppedDestroyed: ['stopped', 1],
  stoppedCrashed: ['stopped', 2],
  stoppedSaved: ['stopped', 4],
  stoppedFailed: ['stopped', 5],
  shutdownGuest: ['shutdown', 1],
  shutdownHost: ['shutdown', 2],
} as const satisfies Record<string, readonly [Lifecycle['event'], number]>;

export type LifecycleName = keyof typeof lifecycle;

export function now(): { readonly atMs: number; readonly monotonicMs: number } {
  return { atMs: Date.now(), monotonicMs: Number(process.hrtime.bigint()) / 1e6 };
}

export function lifecycleEvent(uuid: string, name: LifecycleName): HypervisorEvent {
  const [event, detail] = lifecycle[name];
  return { kind: 'lifecycle', uuid, event, detail, ...now() };
}

export function blockJobEvent(
  uuid: string,
  target: string,
  status: 'completed' | 'failed' | 'canceled' | 'ready',
): HypervisorEvent {
  return { kind: 'block-job', uuid, target, status, ...now() };
}
