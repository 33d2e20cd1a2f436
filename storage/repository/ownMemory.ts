/** Node cuts smaller buffers out of one that they share. */
const sharedBelowBytes = 64 * 1024;

/**
 * Gives memory back at once that nobody else uses, instead of leaving it to the garbage collector: that lets tens of
 * mebibytes of such buffers gather in each thread, and every new one costs page faults again. Does nothing for a buffer
 * that may share its memory with others. The buffer is empty afterwards.
 */
export function giveBack(buffer: Uint8Array): void {
  if (ownsMemory(buffer)) buffer.buffer.transfer(0);
}

/** Whether a buffer is the beginning, or all, of memory that was taken for it alone. */
export function ownsMemory(buffer: Uint8Array): buffer is Uint8Array<ArrayBuffer> {
  return (
    buffer.buffer instanceof ArrayBuffer &&
    buffer.byteOffset === 0 &&
    buffer.buffer.byteLength >= Math.max(sharedBelowBytes, Buffer.poolSize + 1)
  );
}

/** Memory that all threads see. */
export function sharedBuffer(sizeBytes: number): Buffer {
  return Buffer.from(new SharedArrayBuffer(sizeBytes));
}

/** A view of the same memory, for what takes Buffers only. */
export function asBuffer({ buffer, byteOffset, length }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, length);
}
