import t from 'tap';
import { createLogger } from './log.ts';

function capture(): { readonly lines: string[]; readonly destination: { write(text: string): void } } {
  const lines: string[] = [];
  return { lines, destination: { write: (text) => void lines.push(text) } };
}

void t.test('secrets do not reach the log, wherever they stand in what is logged', (t) => {
  const { lines, destination } = capture();
  const log = createLogger({ level: 'info', destination }).child({ jobId: 'j1', machine: 'vm-001' });
  log.info(
    { passphrase: 'hush', storage: { key: 'hush', deeper: { token: 'hush' } }, definition: '<hush/>' },
    'made',
  );
  t.equal(lines.length, 1);
  t.notMatch(lines[0], /hush/);
  t.match(JSON.parse(lines[0] ?? ''), { jobId: 'j1', machine: 'vm-001', msg: 'made' });
  t.end();
});

void t.test('the environment sets the level, and an unknown level is reported and not obeyed', (t) => {
  t.teardown(() => void delete process.env['STILLPOINT_LOG']);
  const { lines, destination } = capture();
  process.env['STILLPOINT_LOG'] = 'error';
  createLogger({ destination }).warn('not shown');
  t.equal(lines.length, 0);
  process.env['STILLPOINT_LOG'] = 'loud';
  createLogger({ destination });
  t.match(lines[0], /loud/);
  t.end();
});

void t.test('a secret that is known by its form is taken out of messages and of errors, too', (t) => {
  const { lines, destination } = capture();
  const log = createLogger({ level: 'info', destination });
  log.error({ err: new Error(`unsupported: <graphics type='vnc' passwd='hush'/>`) }, 'passwd="hush"');
  t.notMatch(lines[0], /hush/);
  t.match(JSON.parse(lines[0] ?? ''), { msg: 'passwd="[secret]"' }, 'and it is JSON still');
  t.end();
});
