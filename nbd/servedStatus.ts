import { allocation, commandFlags } from './protocol.ts';
import type { ClientRequest } from './serverProtocol.ts';
import type { ZeroMap } from './zeroMap.ts';

/** What one answer has at most; the client asks again for the rest. */
const descriptorsMax = 4096;

/** What `base:allocation` says of a range within the volume, from its start: one descriptor at least, none beyond. */
export function describeStatus(
  map: ZeroMap,
  { offsetBytes, lengthBytes, flags }: ClientRequest,
): readonly { readonly lengthBytes: number; readonly flags: number }[] {
  const max = (flags & commandFlags.requestOne) === 0 ? descriptorsMax : 1;
  const descriptors: { lengthBytes: number; flags: number }[] = [];
  const end = offsetBytes + lengthBytes;
  let position = offsetBytes;
  for (let stretch = map.stretchAt(offsetBytes); position < end && descriptors.length < max; stretch += 1) {
    const stop = Math.min(end, map.endOf(stretch));
    descriptors.push({
      lengthBytes: stop - position,
      flags: map.isZero(stretch) ? allocation.hole | allocation.zero : 0,
    });
    position = stop;
  }
  return descriptors;
}
