import { randomInt } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { eventually } from '../../test/lab/eventually.ts';
import { Guestfish, quoted } from './guestfish.ts';
import { processesWith } from './processes.ts';

/**
 * A line as guestfish 1.48 reads it (fish.c: parse_command_line, parse_quoted_string): the command, its arguments, and
 * whether a shell would be given anything.
 */
function readAsGuestfish(line: string): { readonly command: string; readonly args: readonly string[] } {
  if (/^[!#]|^<!/.test(line)) throw new Error(`not a command: ${line}`);
  const [command = ''] = /^[^ \t]*/.exec(line) ?? [];
  const args: string[] = [];
  for (let rest = line.slice(command.length).trimStart(); rest !== ''; rest = rest.trimStart()) {
    if (rest.startsWith('|')) throw new Error(`a shell is given ${rest}`);
    if (!rest.startsWith('"')) throw new Error(`not quoted: ${rest}`);
    let at = 1;
    let arg = '';
    for (; rest[at] !== '"'; at += 1) {
      if (at >= rest.length) throw new Error('unterminated');
      if (rest[at] !== '\\') arg += rest[at];
      else {
        const [, digits] = /^\\x([0-9a-f]{2})/.exec(rest.slice(at)) ?? [];
        if (digits === undefined) throw new Error('another escape');
        arg += String.fromCharCode(Number.parseInt(digits, 16));
        at += 3;
      }
    }
    if (!/^[ \t]|^$/.test(rest.slice(at + 1))) throw new Error('not separated');
    args.push(arg);
    rest = rest.slice(at + 1);
  }
  return { command, args };
}

void t.test('whatever a guest has named, guestfish reads one argument and no command', (t) => {
  const seed = Number(process.env['STILLPOINT_SEED'] ?? randomInt(2 ** 31));
  t.comment(`STILLPOINT_SEED=${seed}`);
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const bytes = (): string =>
    String.fromCharCode(...Array.from({ length: random(60) }, () => 1 + random(255)));
  const names = [
    '/a"\n!touch /tmp/broken',
    '/a" | sh',
    '\\',
    '/\\"',
    "'",
    '~root',
    '<!id',
    '-',
    '',
    ' ',
    '\t#',
    ...Array.from({ length: 500 }, bytes),
  ];
  for (const name of names) {
    const line = `ls0 ${quoted(name)} ${quoted('/x')}`;
    if (line.includes('\n')) t.fail(`a newline in ${JSON.stringify(line)}`);
    t.same(readAsGuestfish(line), { command: 'ls0', args: [name, '/x'] });
  }
  t.throws(() => quoted('a\0b'), { code: 'FILE_UNREADABLE' });
  t.end();
});

/** Stands for guestfish: answers `echo`, and does what the other commands of the tests say. */
const script = `
const { spawn } = require('node:child_process');
const child = spawn('sleep', [process.argv[2]], { stdio: 'ignore' });
const lines = require('node:readline').createInterface({ input: process.stdin, crlfDelay: 0 });
let hangs = false;
lines.on('line', (line) => {
  if (hangs) return;
  const [command, ...args] = line.split(' ');
  if (command === 'echo') process.stdout.write(args[0] + '\\n');
  else if (command === '-say') process.stdout.write(JSON.parse(args[0]).repeat(Number(args[1] ?? 1)));
  else if (command === '-complain') process.stderr.write('libguestfs: error: no');
  else if (command === '-flood') process.stdout.write('x'.repeat(100000));
  else if (command === '-die') process.exit(3);
  else if (command === '-hang') hangs = true;
});
lines.on('close', () => { child.kill(); child.on('exit', () => process.exit(0)); });
`;

async function start(test: Test, signal = new AbortController().signal) {
  const directory = test.testdir({});
  const file = join(directory, 'fake.cjs');
  await writeFile(file, script);
  // Nobody else sleeps as long.
  const seconds = String(1_000_000 + randomInt(1_000_000));
  const logFile = join(directory, 'log');
  const guestfish = await Guestfish.start({
    command: [process.execPath, file, seconds],
    environment: { PATH: process.env['PATH'] },
    directory,
    logFile,
    signal,
  });
  test.teardown(() => guestfish[Symbol.asyncDispose]());
  const children = () => processesWith((args) => args[0] === 'sleep' && args[1] === seconds);
  return { guestfish, logFile, children };
}

const said = (text: string): readonly string[] => [text];

void t.test('an answer is what stands before the mark, byte for byte', async (t) => {
  const { guestfish } = await start(t);
  for (const text of ['', 'one', 'two\n', '\n\n'])
    t.equal((await guestfish.ask(`say ${JSON.stringify(text)}`)).toString(), text);
  t.ok((await guestfish.ask('say "long" 300000')).equals(Buffer.from('long'.repeat(300_000))));
  const many = await Promise.all(['a', 'b', 'c'].map((text) => guestfish.ask(`say ${JSON.stringify(text)}`)));
  t.same(many.map(String), ['a', 'b', 'c'], 'asked at once they are answered in order');
});

void t.test('a complaint is an error of its command alone', async (t) => {
  const { guestfish, logFile } = await start(t);
  await t.rejects(guestfish.ask('complain'), { code: 'FILE_UNREADABLE', message: /libguestfs: error: no/ });
  t.equal((await guestfish.ask('say "fine"')).toString(), 'fine');
  await t.rejects(guestfish.ask('say', said('x'.repeat(8200))), {
    code: 'FILE_UNREADABLE',
    message: /too long/,
  });
  t.match(await readFile(logFile, 'utf8'), /no/);
});

void t.test('a guestfish that floods, dies or hangs ends with all that it has started', async (t) => {
  for (const [command, message] of [
    ['flood', /more than 1000 bytes/],
    ['die', /has ended/],
    ['hang', /no answer within/],
  ] as const) {
    const { guestfish, children } = await start(t);
    await eventually(async () => (await children()).length === 1);
    const asked = guestfish.ask(command, [], { bytesMax: 1000, answerMs: 300 });
    await t.rejects(asked, { code: 'FILE_UNREADABLE', message }, command);
    await guestfish[Symbol.asyncDispose]();
    t.same(await children(), [], command);
  }
});

void t.test('an abort ends it with all that it has started, and is what is thrown', async (t) => {
  const ending = new AbortController();
  const { guestfish, children } = await start(t, ending.signal);
  await eventually(async () => (await children()).length === 1);
  const asked = guestfish.ask('hang');
  const rejected = t.rejects(asked, { message: 'enough' });
  ending.abort(new Error('enough'));
  await rejected;
  await t.rejects(guestfish.ask('say "x"'), { message: 'enough' });
  await guestfish[Symbol.asyncDispose]();
  await eventually(async () => (await children()).length === 0);
});

void t.test('one that is not there is told', async (t) => {
  const starting = Guestfish.start({
    command: ['/nowhere/guestfish'],
    environment: {},
    directory: '/',
    logFile: join(t.testdir({}), 'log'),
    signal: new AbortController().signal,
  });
  await t.rejects(starting, { code: 'FILE_SYSTEM_UNSUPPORTED' });
});
