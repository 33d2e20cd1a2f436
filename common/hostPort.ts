import { BlockList, isIP } from 'node:net';

/** Where something listens on the network. */
export interface HostPort {
  /** A name or an address; one of IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
}

const form = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$/;

/**
 * Reads `HOST:PORT`, where an address of IPv6 stands in brackets: `[::1]:7420`. Port 0 means any free one.
 *
 * @throws RangeError for anything else
 */
export function parseHostPort(text: string): HostPort {
  const [, address, name, digits = ''] = form.exec(text) ?? [];
  const host = address ?? name;
  const port = Number(digits);
  if (host === undefined || port > 65_535)
    throw new RangeError('expected HOST:PORT, such as 192.0.2.7:7420 or [2001:db8::7]:7420');
  return { host, port };
}

/** The text that `parseHostPort` reads. */
export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/**
 * Reads where to listen: `127.0.0.1:9777`, `[::1]:9777`. Names are refused: what they lead to can change.
 * @throws RangeError for anything else
 */
export function parseListenAddress(text: string): HostPort {
  const [, address, name, digits] = form.exec(text) ?? [];
  const host = address ?? name ?? '';
  if (isIP(host) === (address === undefined ? 4 : 6) && Number(digits) <= 65_535) return parseHostPort(text);
  throw new RangeError('expected an IP address and a port, such as 127.0.0.1:9777 or [::1]:9777');
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** True for what never leaves this host: `localhost`, and the addresses of its loopback; IPv6 also in brackets. */
export function isLoopbackHost(host: string): boolean {
  if (host === 'localhost') return true;
  const address = host.replace(/^\[(.*)\]$/, '$1');
  const version = isIP(address);
  return version !== 0 && loopback.check(address, version === 4 ? 'ipv4' : 'ipv6');
}
