/*
 * What no honest repository exceeds (docs/FORMAT.md, "Limits"). Every parser holds its input against these before
 * it allocates or computes anything, because the place of storage may be hostile.
 */

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;

/** Chunk sizes are powers of two between these. */
export const chunkBytesMin = 64 * kibibyte;
export const chunkBytesMax = 16 * mebibyte;
export const chunkBytesDefault = mebibyte;

/** Length of a pack file. */
export const packBytesMax = 256 * mebibyte;
/** A pack is closed once its body is as long as this. */
export const packBytesDefault = 32 * mebibyte;
/** Blobs of one pack. */
export const packEntriesMax = 65_535;

/** Ids on one page of a stream. */
export const idsPerPage = 1024;
/** Pages of one stream: its root is then 4 MiB. */
export const pagesMax = 131_072;

/** Content of an object of its own (manifest, index, …) before compression. */
export const objectBytesMax = 64 * mebibyte;
export const manifestBytesMax = 4 * mebibyte;
export const configBytesMax = 64 * kibibyte;
export const keySlotBytesMax = 64 * kibibyte;

/** Packs of one index object. */
export const indexPacksMax = 100_000;

/** Packs that one collection condemns; the next one goes on. */
export const collectionPacksMax = 500_000;

/** Generations of the master key. */
export const generationsMax = 1000;
export const keySlotsMax = 64;
export const attemptsMax = 9999;

/** scrypt: N as a power of two, r and p. 2^20 with r = 8 takes 1 GiB. */
export const scryptLogNMin = 14;
export const scryptLogNMax = 20;
export const scryptRMax = 8;
export const scryptPMax = 4;

/** True for a chunk size that the format allows. */
export function isChunkBytes(value: number): boolean {
  return (
    Number.isInteger(value) && value >= chunkBytesMin && value <= chunkBytesMax && (value & (value - 1)) === 0
  );
}
