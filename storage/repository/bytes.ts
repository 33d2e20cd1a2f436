import { damaged } from './errors.ts';

/** Puts fields one behind the other; integers are unsigned and big-endian. */
export class ByteWriter {
  readonly #parts: Uint8Array[] = [];

  u8(value: number): this {
    return this.#integer(1, value);
  }

  u16(value: number): this {
    return this.#integer(2, value);
  }

  u32(value: number): this {
    return this.#integer(4, value);
  }

  /** Takes what a Number holds exactly. */
  u64(value: number): this {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is no length`);
    const part = Buffer.alloc(8);
    part.writeBigUInt64BE(BigInt(value));
    this.#parts.push(part);
    return this;
  }

  bytes(value: Uint8Array): this {
    this.#parts.push(value);
    return this;
  }

  ascii(value: string): this {
    return this.bytes(Buffer.from(value, 'latin1'));
  }

  finish(): Buffer {
    return Buffer.concat(this.#parts);
  }

  #integer(lengthBytes: 1 | 2 | 4, value: number): this {
    const part = Buffer.alloc(lengthBytes);
    // Throws for what does not fit.
    part.writeUIntBE(value, 0, lengthBytes);
    this.#parts.push(part);
    return this;
  }
}

/** Takes fields out of bytes that may come from anybody. Throws REPOSITORY_DAMAGED at their end. */
export class ByteReader {
  readonly #bytes: Buffer;
  readonly #what: string;
  #position = 0;

  /** @param what names the object in errors */
  constructor(bytes: Buffer, what: string) {
    this.#bytes = bytes;
    this.#what = what;
  }

  get remainingBytes(): number {
    return this.#bytes.length - this.#position;
  }

  u8(): number {
    return this.#take(1).readUInt8();
  }

  u16(): number {
    return this.#take(2).readUInt16BE();
  }

  u32(): number {
    return this.#take(4).readUInt32BE();
  }

  u64(): number {
    const value = this.#take(8).readBigUInt64BE();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.fail(`a length of ${value}`);
    return Number(value);
  }

  /** A view, not a copy. */
  bytes(lengthBytes: number): Buffer {
    return this.#take(lengthBytes);
  }

  /** A count that is followed by so many items of a known length; they must be there. */
  count(max: number, itemBytes: number): number {
    const value = this.u32();
    if (value > max) throw this.fail(`${value} items where ${max} are the most`);
    if (value * itemBytes > this.remainingBytes) throw this.fail(`${value} items are not all there`);
    return value;
  }

  /** These very bytes must stand here. */
  expect(expected: Uint8Array, name: string): void {
    if (!this.#take(expected.length).equals(expected)) throw this.fail(`no ${name}`);
  }

  end(): void {
    if (this.remainingBytes !== 0) throw this.fail(`${this.remainingBytes} bytes too many`);
  }

  fail(why: string): Error {
    return damaged(this.#what, why);
  }

  #take(lengthBytes: number): Buffer {
    if (lengthBytes > this.remainingBytes) throw this.fail('it ends too early');
    const part = this.#bytes.subarray(this.#position, this.#position + lengthBytes);
    this.#position += lengthBytes;
    return part;
  }
}
