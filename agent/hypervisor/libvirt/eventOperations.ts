import type { HypervisorEvent } from '../hypervisor.ts';
import { check } from './connection.ts';
import type { Connection } from './connection.ts';
import { eventTime } from './eventTime.ts';
import { callbacks, libvirt } from './library.ts';
import type { Pointer } from './library.ts';
import { uuidOf } from './machineOperations.ts';
import { blockJobStatusOf, lifecycleEventOf } from './reasons.ts';

const eventLifecycle = 0;
const eventIoErrorReason = 6;
const eventBlockJob2 = 16;

/** Where the child sends events. */
export interface EventSink {
  readonly event: (event: HypervisorEvent) => void;
  /** The connection that delivered them is gone. */
  readonly closed: () => void;
}

/** Domain events. */
export function eventOperations(connection: Connection, sink: EventSink) {
  return {
    /** Registers for all events of all machines on this child's connection; once in a child's life. */
    watchEvents(): void {
      const { pointer } = connection;
      connection.pin();
      const close = callbacks.close(() => sink.closed());
      check(
        'virConnectRegisterCloseCallback',
        libvirt.virConnectRegisterCloseCallback(pointer, close, null, null),
      );
      const register = (eventId: number, callback: Pointer): void => {
        const result = libvirt.virConnectDomainEventRegisterAny(pointer, null, eventId, callback, null, null);
        check('virConnectDomainEventRegisterAny', result);
      };
      register(eventLifecycle, callbacks.lifecycle(onLifecycle));
      register(eventBlockJob2, callbacks.blockJob(onBlockJob));
      register(eventIoErrorReason, callbacks.ioError(onIoError));
    },
  };

  function onLifecycle(_connection: Pointer, domain: Pointer, type: number, detail: number): void {
    const time = eventTime();
    const event = lifecycleEventOf(type);
    if (event !== undefined) sink.event({ kind: 'lifecycle', uuid: uuidOf(domain), event, detail, ...time });
  }

  function onBlockJob(
    _connection: Pointer,
    domain: Pointer,
    target: string,
    _type: number,
    number: number,
  ): void {
    const time = eventTime();
    const status = blockJobStatusOf(number);
    if (status !== undefined)
      sink.event({ kind: 'block-job', uuid: uuidOf(domain), target, status, ...time });
  }

  function onIoError(
    _connection: Pointer,
    domain: Pointer,
    path: string,
    _alias: string,
    _action: number,
    reason: string,
  ): void {
    sink.event({ kind: 'io-error', uuid: uuidOf(domain), path, reason, ...eventTime() });
  }
}
