/** What the buffers hold, put together, from an offset on: so many bytes, or fewer at the end. */
export function bufferRange(parts: readonly Buffer[], offsetBytes: number, lengthBytes: number): Buffer {
  const found: Buffer[] = [];
  let startBytes = 0;
  for (const part of parts) {
    const from = Math.max(0, offsetBytes - startBytes);
    const to = Math.min(part.length, offsetBytes + lengthBytes - startBytes);
    if (from < to) found.push(part.subarray(from, to));
    startBytes += part.length;
  }
  return Buffer.concat(found);
}
