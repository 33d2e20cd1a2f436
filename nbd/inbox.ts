/** What has come from a peer and is not used up yet. Its memory is what the socket has delivered, not a copy. */
export class Inbox {
  #bytes: Buffer = Buffer.alloc(0);
  #at = 0;

  get heldBytes(): number {
    return this.#bytes.length - this.#at;
  }

  push(bytes: Buffer): void {
    this.#bytes = this.heldBytes === 0 ? bytes : Buffer.concat([this.#bytes.subarray(this.#at), bytes]);
    this.#at = 0;
  }

  /** Takes exactly so many bytes out, or none and returns `undefined`. */
  take(lengthBytes: number): Buffer | undefined {
    if (this.heldBytes < lengthBytes) return undefined;
    const start = this.#at;
    this.#at += lengthBytes;
    return this.#bytes.subarray(start, this.#at);
  }

  /** Throws away up to so many bytes; returns how many. */
  skip(lengthBytes: number): number {
    const skipped = Math.min(lengthBytes, this.heldBytes);
    this.#at += skipped;
    return skipped;
  }
}
