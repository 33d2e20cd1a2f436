import t from 'tap';
import { formatHostPort, isLoopbackHost, parseHostPort, parseListenAddress } from './hostPort.ts';

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
