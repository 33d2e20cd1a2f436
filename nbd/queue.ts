interface Link<T> {
  readonly value: T;
  next: Link<T> | undefined;
}

/** First in, first out, each in constant time; what has left is not held. */
export class Queue<T> {
  #first: Link<T> | undefined;
  #last: Link<T> | undefined;

  push(value: T): void {
    const link: Link<T> = { value, next: undefined };
    if (this.#last === undefined) this.#first = link;
    else this.#last.next = link;
    this.#last = link;
  }

  /** Takes the oldest out; undefined when there is none. */
  shift(): T | undefined {
    const link = this.#first;
    this.#first = link?.next;
    if (this.#first === undefined) this.#last = undefined;
    return link?.value;
  }
}
