const zeros = Buffer.alloc(64 * 1024);

/** Fills with zeros, also memory that threads share: that, `fill` writes byte by byte. */
export function zeroFill(target: Buffer): void {
  for (let start = 0; start < target.length; start += zeros.length) zeros.copy(target, start);
}
