import type { BlockJob, HypervisorEvent, MachineState, MachineStatus } from '../hypervisor.ts';

/** libvirt's enumerations by their position (`libvirt-domain.h`), in the words of virsh; a newer libvirt may know more. */

const states: readonly MachineState[] = [
  'no-state',
  'running',
  'blocked',
  'paused',
  'shutting-down',
  'shut-off',
  'crashed',
  'pmsuspended',
];

const reasons: Readonly<Record<MachineState, readonly string[]>> = {
  'no-state': ['unknown'],
  running: [
    'unknown',
    'booted',
    'migrated',
    'restored',
    'from-snapshot',
    'unpaused',
    'migration-canceled',
    'save-canceled',
    'event-wakeup',
    'crashed',
    'post-copy',
    'post-copy-failed',
  ],
  blocked: ['unknown'],
  paused: [
    'unknown',
    'user',
    'migrating',
    'saving',
    'dumping',
    'io-error',
    'watchdog',
    'from-snapshot',
    'shutting-down',
    'creating-snapshot',
    'crashed',
    'starting-up',
    'post-copy',
    'post-copy-failed',
  ],
  'shutting-down': ['unknown', 'user'],
  'shut-off': [
    'unknown',
    'shutdown',
    'destroyed',
    'crashed',
    'migrated',
    'saved',
    'failed',
    'from-snapshot',
    'daemon',
  ],
  crashed: ['unknown', 'panicked'],
  pmsuspended: ['unknown'],
};

/** `virDomainGetState` in words. */
export function statusOf(state: number, reason: number): MachineStatus {
  const name = states[state] ?? 'no-state';
  return { state: name, reason: reasons[name][reason] ?? 'unknown' };
}

const lifecycleEvents = [
  'defined',
  'undefined',
  'started',
  'suspended',
  'resumed',
  'stopped',
  'shutdown',
  'pmsuspended',
  'crashed',
] as const satisfies readonly Extract<HypervisorEvent, { kind: 'lifecycle' }>['event'][];

/** `virDomainEventType` in words; `undefined` for one that this version does not know. */
export function lifecycleEventOf(event: number): (typeof lifecycleEvents)[number] | undefined {
  return lifecycleEvents[event];
}

const blockJobStatuses = ['completed', 'failed', 'canceled', 'ready'] as const satisfies readonly Extract<
  HypervisorEvent,
  { kind: 'block-job' }
>['status'][];

/** `virConnectDomainEventBlockJobStatus` in words; `undefined` for one that this version does not know. */
export function blockJobStatusOf(status: number): (typeof blockJobStatuses)[number] | undefined {
  return blockJobStatuses[status];
}

const blockJobKinds = ['unknown', 'pull', 'copy', 'commit', 'active-commit', 'backup'];

/** `virDomainBlockJobType` in words. */
export function blockJobKindOf(type: number): BlockJob['kind'] {
  return blockJobKinds[type] ?? 'unknown';
}
