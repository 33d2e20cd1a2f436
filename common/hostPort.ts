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
