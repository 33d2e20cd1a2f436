import t from 'tap';
import { formatHostPort, parseHostPort } from './hostPort.ts';

void t.test('names and addresses of both families are read, and written as they were', async (t) => {
  t.same(parseHostPort('192.0.2.7:7420'), { host: '192.0.2.7', port: 7420 });
  t.same(parseHostPort('[2001:db8::7]:1'), { host: '2001:db8::7', port: 1 });
  for (const text of ['node-1.example.net:7420', '[::1]:0', '0.0.0.0:65535'])
    t.equal(formatHostPort(parseHostPort(text)), text);
});

void t.test('what names no host or no port is refused', async (t) => {
  for (const text of [
    '',
    'host',
    ':7420',
    'host:',
    'host:65536',
    'host:-1',
    '::1:7420',
    'a b:1',
    'http://a:1',
  ])
    t.throws(() => parseHostPort(text), RangeError, text);
});
