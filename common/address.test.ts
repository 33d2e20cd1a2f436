import t from 'tap';
import { isLoopbackHost, parseListenAddress } from './address.ts';

void t.test('an address to listen at is an IP address and a port', (t) => {
  t.same(parseListenAddress('127.0.0.1:9777'), { host: '127.0.0.1', port: 9777 });
  t.same(parseListenAddress('[::1]:0'), { host: '::1', port: 0 });
  for (const wrong of [
    '',
    ':1',
    '127.0.0.1',
    'localhost:9777',
    '::1:9777',
    '[127.0.0.1]:1',
    '127.0.0.1:65536',
  ])
    t.throws(() => parseListenAddress(wrong), RangeError, wrong);
  t.end();
});

void t.test('only the loopback of this host counts as such', (t) => {
  for (const host of ['localhost', '127.0.0.1', '127.9.9.9', '::1', '[::1]'])
    t.ok(isLoopbackHost(host), host);
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'localhost.example.net', '127.0.0.1.example.net', ''])
    t.notOk(isLoopbackHost(host), host);
  t.end();
});
