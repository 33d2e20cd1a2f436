let trim: ((keepBytes: number) => number) | undefined;

/**
 * Gives the host back what this process has freed: glibc keeps what lies below something that is still in use, for as
 * long as the process lives (malloc_trim(3)).
 *
 * @throws Error of koffi, with another C library
 */
export async function giveBackFreedMemory(): Promise<void> {
  if (trim === undefined) {
    const { default: koffi } = await import('koffi');
    trim = koffi.load('libc.so.6').func('int malloc_trim(size_t keep)');
  }
  trim?.(0);
}
