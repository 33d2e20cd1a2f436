import { assertNever } from '../../common/errors.ts';
import type { Repair } from './decide.ts';

/** What a repair is about to do, for the operator. */
export function describeRepair(repair: Repair): string {
  switch (repair.kind) {
    case 'wait':
      return 'waits for libvirt to finish what it does';
    case 'resume':
      return 'lets the machine run on';
    case 'power-off':
      return `stops the machine, because ${repair.why}`;
    case 'restore-original':
      return 'brings the machine back from its memory state, on the images that it had';
    case 'finish-swap':
      return 'puts the remaining overlays into place';
    case 'restore-swapped':
      return 'brings the machine back from its memory state';
    case 'put-back':
      return 'gives the machine back the images that it had';
    case 'put-frozen-under':
      return 'puts the frozen image under an image whose merge was not on the disk';
    case 'start-cold':
      return `starts the machine: ${repair.why}`;
    case 'undo':
      return 'the machine is as it was; removes what was prepared';
    case 'go-on':
      return `the machine is in order; the job goes on with ${repair.from}`;
    case 'let-go':
      return `leaves the machine as its owner has made it: ${repair.why}`;
    case 'park':
      return `needs an operator: ${repair.why}`;
    default:
      return assertNever(repair);
  }
}
