import { channel } from 'node:diagnostics_channel';

const header = 'grpc-timeout';
/** As grpc-js reads it. */
const shape = /(\d{1,8})\s*([HMSmun])/;
const unitsMs = new Map([
  ['H', 3_600_000],
  ['M', 60_000],
  ['S', 1000],
  ['m', 1],
  ['u', 0.001],
  ['n', 0.000_001],
]);
/** Whole days that fit into 31 bits of milliseconds. */
const longestS = 24 * 24 * 3600;

const streams = channel('http2.server.stream.start');

/**
 * From now on no call of this process seems to ask for more than 24 days. grpc-js counts milliseconds in 32 bits: what
 * does not fit wraps, so that who asks for a month is told at once that it is over. Nothing else sees the header
 * before it: even interceptors come after.
 */
export function shortenLongTimeouts(): void {
  // Each connection has a server that asks for this.
  streams.unsubscribe(shorten);
  streams.subscribe(shorten);
}

function shorten(about: unknown): void {
  const headers: unknown = Reflect.get(Object(about), 'headers');
  if (typeof headers !== 'object' || headers === null) return;
  const asked: unknown = Reflect.get(headers, header);
  if (typeof asked === 'string') Reflect.set(headers, header, shortened(asked));
}

/** A value of the header that grpc-js can count; what is none it may refuse itself. */
export function shortened(asked: string): string {
  const [, count, unit = ''] = shape.exec(asked) ?? [];
  const ms = Number(count) * (unitsMs.get(unit) ?? Number.NaN);
  return ms > longestS * 1000 ? `${longestS}S` : asked;
}
