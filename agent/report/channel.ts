import { credentials } from '@grpc/grpc-js';
import { ReportError } from './errors.ts';
import type { ControllerChannel } from './sender.ts';

/**
 * The way to the controller of the configuration. Without certificates it leads to this host only.
 * @throws ReportError CONTROLLER_REFUSED
 */
export function channelOf(address: string): ControllerChannel {
  if (isLoopback(address)) return { address, credentials: () => credentials.createInsecure() };
  throw new ReportError('CONTROLLER_REFUSED', `nothing is sent to ${address} without certificates`, {
    hint: 'join the controller, or name one on 127.0.0.1 for a test',
  });
}

function isLoopback(address: string): boolean {
  return /^(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost):\d+$/.test(address);
}
