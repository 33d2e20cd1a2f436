interface Waiter {
  readonly bytes: number;
  readonly admit: (admitted: boolean) => void;
}

/**
 * Bounds how many bytes are held at a time: whoever wants to hold some takes them first, in turn, and gives them
 * back. What is larger than the window gets in when nothing else is.
 */
export class ByteWindow {
  readonly #maxBytes: number;
  #takenBytes = 0;
  #closed = false;
  readonly #waiters: Waiter[] = [];

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  get takenBytes(): number {
    return this.#takenBytes;
  }

  /** Takes bytes if that is possible now, and nobody waits for his. */
  tryTake(bytes: number): boolean {
    if (this.#closed || this.#waiters.length > 0 || !this.#fits(bytes)) return false;
    this.#takenBytes += bytes;
    return true;
  }

  /** Takes bytes when they are there; `false` once the window is closed. */
  async take(bytes: number): Promise<boolean> {
    if (this.tryTake(bytes)) return true;
    if (this.#closed) return false;
    return new Promise((admit) => void this.#waiters.push({ bytes, admit }));
  }

  give(bytes: number): void {
    this.#takenBytes -= bytes;
    for (let first = this.#waiters[0]; first !== undefined && this.#fits(first.bytes); ) {
      this.#waiters.shift();
      this.#takenBytes += first.bytes;
      first.admit(true);
      first = this.#waiters[0];
    }
  }

  /** Nobody gets in any more. */
  close(): void {
    this.#closed = true;
    for (const { admit } of this.#waiters.splice(0)) admit(false);
  }

  #fits(bytes: number): boolean {
    return this.#takenBytes === 0 || this.#takenBytes + bytes <= this.#maxBytes;
  }
}
