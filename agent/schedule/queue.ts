interface Entry {
  readonly id: string;
  readonly atMs: number;
  /** Its place in the heap. */
  index: number;
}

/**
 * The longest sleep: timers count the time that goes by, and notice neither that the clock was set nor that the host
 * was suspended.
 */
const longestSleepMs = 60_000;

/**
 * What is to be looked at next, of many: each id with one instant, the earliest first. A heap, in which everything but
 * looking at the first takes a logarithm of comparisons; between two instants nothing is done at all.
 */
export class DueQueue {
  readonly #heap: Entry[] = [];
  readonly #entries = new Map<string, Entry>();

  get size(): number {
    return this.#heap.length;
  }

  /** Puts an id at an instant, from wherever it was. */
  set(id: string, atMs: number): void {
    this.delete(id);
    const entry = { id, atMs, index: this.#heap.length };
    this.#entries.set(id, entry);
    this.#heap.push(entry);
    this.#rise(entry);
  }

  /** Takes an id out, if it is in. */
  delete(id: string): void {
    const entry = this.#entries.get(id);
    const last = this.#heap.at(-1);
    if (entry === undefined || last === undefined) return;
    this.#entries.delete(id);
    this.#heap.pop();
    if (last === entry) return;
    this.#place(last, entry.index);
    this.#rise(last);
    this.#sink(last);
  }

  /** The earliest instant; null when the queue is empty. */
  nextMs(): number | null {
    return this.#heap[0]?.atMs ?? null;
  }

  /** How long to sleep before `takeDue` is worth calling again: never longer than a minute. */
  sleepMs(nowMs: number): number {
    return Math.min(longestSleepMs, Math.max(0, (this.nextMs() ?? Number.POSITIVE_INFINITY) - nowMs));
  }

  /** Takes out all ids whose instant has come, the earliest first. */
  takeDue(nowMs: number): readonly string[] {
    const due: string[] = [];
    for (let [first] = this.#heap; first !== undefined && first.atMs <= nowMs; [first] = this.#heap) {
      this.delete(first.id);
      due.push(first.id);
    }
    return due;
  }

  #place(entry: Entry, index: number): void {
    this.#heap[index] = entry;
    entry.index = index;
  }

  #rise(entry: Entry): void {
    while (entry.index > 0) {
      const parent = this.#heap[(entry.index - 1) >> 1];
      if (parent === undefined || parent.atMs <= entry.atMs) return;
      this.#swap(entry, parent);
    }
  }

  #sink(entry: Entry): void {
    for (;;) {
      const left = this.#heap[2 * entry.index + 1];
      const right = this.#heap[2 * entry.index + 2];
      const child = right !== undefined && left !== undefined && right.atMs < left.atMs ? right : left;
      if (child === undefined || child.atMs >= entry.atMs) return;
      this.#swap(entry, child);
    }
  }

  #swap(a: Entry, b: Entry): void {
    const { index } = a;
    this.#place(a, b.index);
    this.#place(b, index);
  }
}
