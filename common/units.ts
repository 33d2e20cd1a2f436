const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** A number of bytes for people, in binary units: `512 B`, `1.5 MiB`, `40 GiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1023.95 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const text = Math.abs(value) >= 99.95 ? value.toFixed(0) : value.toFixed(1).replace('.0', '');
  return `${text} ${units[unit]}`;
}

const decimalUnits = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'] as const;
const bytesPattern = /^(\d+(?:\.\d+)?) ?(\w+)$/;

/**
 * Reads a number of bytes as people write it, in the units of `formatBytes` or in decimal ones: `500 GiB`, `1.5TB`.
 * @throws RangeError for anything else, for less than a byte, and for more than can be counted
 */
export function parseBytes(text: string): number {
  const [, digits = '', unit = ''] = bytesPattern.exec(text) ?? [];
  const binary = units.findIndex((known) => known === unit);
  const decimal = decimalUnits.findIndex((known) => known === unit);
  const bytes = Math.round(Number(digits) * (binary === -1 ? 1000 ** decimal : 1024 ** binary));
  if ((binary === -1 && decimal === -1) || bytes < 1 || !Number.isSafeInteger(bytes))
    throw new RangeError(`expected bytes, or a size such as "500 GiB" or "2TB"`);
  return bytes;
}
