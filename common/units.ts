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
