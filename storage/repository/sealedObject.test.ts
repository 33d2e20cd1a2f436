import { randomBytes } from 'node:crypto';
import t from 'tap';
import { formatStage } from './fixture.ts';
import { objectBytesMax } from './limits.ts';
import { openObject, sealObject } from './sealedObject.ts';

void t.test(
  'whatever can be sealed can be opened: the largest content, and of what does not compress',
  (t) => {
    const context = formatStage();
    const content = randomBytes(objectBytesMax);
    const sealed = sealObject('index', 'i/', content, context);
    t.ok(openObject(sealed, 'i/', ['index'], context).content.equals(content));
    t.throws(() => sealObject('index', 'i/', Buffer.alloc(objectBytesMax + 1), context), RangeError);
    t.end();
  },
);
