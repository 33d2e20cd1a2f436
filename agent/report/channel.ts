import type { X509Certificate } from 'node:crypto';
import { credentials } from '@grpc/grpc-js';
import { isLoopbackHost, parseHostPort } from '../../common/hostPort.ts';
import { ReportError } from './errors.ts';
import { controllerChannelOptions, hostCredentials, objectionTo } from '../enrolment/controllerChannel.ts';
import type { IdentityStore } from '../identity/identityStore.ts';
import type { ControllerChannel } from './sender.ts';

/**
 * The way to the controller of the configuration. Without certificates it leads to this host only.
 * @throws ReportError CONTROLLER_REFUSED
 */
export function channelOf(address: string): ControllerChannel {
  if (isLoopbackHost(parseHostPort(address).host))
    return { address, credentials: () => credentials.createInsecure() };
  throw new ReportError('CONTROLLER_REFUSED', `nothing is sent to ${address} without certificates`, {
    hint: 'join the controller, or name one on 127.0.0.1 for a test',
  });
}

/** The way of a host that has joined: each connection shows the certificate that is in force then. */
export function joinedChannelOf(
  address: string,
  identities: Pick<IdentityStore, 'current' | 'revoked'>,
): ControllerChannel {
  let shown: X509Certificate | undefined;
  return {
    address,
    options: controllerChannelOptions,
    objection: async () =>
      shown === undefined ? undefined : objectionTo(shown, await identities.revoked(), new Date()),
    credentials: async () => {
      const identity = await identities.current();
      if (identity !== null)
        return hostCredentials(identity, await identities.revoked(), (certificate) => (shown = certificate));
      throw new ReportError('CONTROLLER_REFUSED', `nothing is sent to ${address}: this host has left it`, {
        hint: 'stillpoint agent join',
      });
    },
  };
}
