import t from 'tap';
import { shortened } from './longTimeouts.ts';

void t.test('what does not fit into 31 bits of milliseconds becomes 24 days', async (t) => {
  for (const asked of ['2592000S', '2147484S', '2073601S', '43200M', '720H', '99999999H', '99999999S'])
    t.equal(shortened(asked), '2073600S', asked);
});

void t.test('anything else stays as it was asked for', async (t) => {
  for (const asked of ['2073600S', '576H', '34560M', '99999999m', '99999999u', '99999999n', '0S', '', 'abc'])
    t.equal(shortened(asked), asked);
});
