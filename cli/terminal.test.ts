import t from 'tap';
import { CliError } from './errors.ts';
import { RecordedTerminal } from './fixture.ts';
import { Terminal } from './terminal.ts';

const error = new CliError('USAGE', 'first\nsecond', 'type this\nand this');

void t.test('errors have their code in front and a hint below', async (t) => {
  const recorded = new RecordedTerminal();
  recorded.terminal.error(error, 'web-1');
  t.equal(recorded.stderr, 'USAGE: web-1: first\n  second\nhint: type this\n  and this\n');
  t.equal(recorded.stdout, '');
});

void t.test('errors are one JSON line on stderr when JSON is asked for', async (t) => {
  const recorded = new RecordedTerminal({ json: true });
  recorded.terminal.error(error);
  t.same(JSON.parse(recorded.stderr), {
    error: {
      code: 'USAGE',
      message: 'first\nsecond',
      hint: 'type this\nand this',
      retryable: false,
      about: null,
    },
  });
});

void t.test('live lines are taken away before anything else is printed, and fit the terminal', async (t) => {
  const recorded = new RecordedTerminal({ isTTY: true });
  recorded.terminal.live([['x'.repeat(100)], ['\u001b[2J']]);
  t.equal(recorded.stderr, `${'x'.repeat(59)}\n${String.raw`\u{1b}[2J`}\n`);
  recorded.stderr = '';
  recorded.terminal.remark('between');
  t.equal(recorded.stderr, `\u001b[2A\r\u001b[Jbetween\n${'x'.repeat(59)}\n${String.raw`\u{1b}[2J`}\n`);
  recorded.stderr = '';
  recorded.terminal.live([]);
  t.equal(recorded.stderr, '\u001b[2A\r\u001b[J');
});

void t.test('--quiet leaves remarks and progress out, and warnings in', async (t) => {
  const recorded = new RecordedTerminal({ isTTY: true, quiet: true });
  recorded.terminal.remark('remark');
  recorded.terminal.live([['progress']]);
  t.equal(recorded.stderr, '');
  recorded.terminal.warning('warning');
  t.match(recorded.stderr, 'warning');
});

void t.test('a question takes one line, and nothing for an end of input or an interruption', async (t) => {
  const answer = async (text: string): Promise<string> => {
    const recorded = new RecordedTerminal({ isTTY: true });
    recorded.stdin.end(text);
    return recorded.terminal.ask('go on?');
  };
  t.equal(await answer(' yes \nno\n'), 'yes');
  t.equal(await answer(''), '');
  const recorded = new RecordedTerminal({ isTTY: true });
  const controller = new AbortController();
  const asked = recorded.terminal.ask('go on?', { signal: controller.signal });
  controller.abort();
  t.equal(await asked, '');
});

void t.test('what is typed as a secret is not shown, and keeps its blanks', async (t) => {
  for (const isTTY of [true, false]) {
    const recorded = new RecordedTerminal({ isTTY });
    const asked = recorded.terminal.askSecrets('The passphrase:', 'Once more:');
    recorded.stdin.end(' correct horse \ncorrect\nmore\n');
    t.same(await asked, [' correct horse ', 'correct']);
    t.equal(recorded.stderr, isTTY ? 'The passphrase: \nOnce more: \n' : '', 'nobody is asked at a pipe');
    t.equal(recorded.stdout, '');
  }
  const recorded = new RecordedTerminal({ isTTY: true });
  recorded.stdin.end('');
  t.same(await recorded.terminal.askSecrets('The passphrase:', 'Once more:'), ['', '']);
});

void t.test('what does not fit on the screen is not drawn, for it could not be drawn over', (t) => {
  const recorded = new RecordedTerminal({ isTTY: true, rows: 4 });
  const lines = ['one', 'two', 'three', 'four', 'five'].map((line) => [line]);
  recorded.terminal.live(lines);
  t.equal(recorded.stderr, 'one\ntwo\nthree\n');
  recorded.terminal.live([]);
  t.match(recorded.stderr, '\u001b[3A');
  t.end();
});

void t.test('results are drawn in place only where they and progress go to one terminal', (t) => {
  const stream = (isTTY: boolean) => ({ isTTY, write: () => true });
  const drawsWith = (stdout: boolean, stderr: boolean): boolean => {
    const { terminal } = new RecordedTerminal();
    t.equal(terminal.draws, false);
    const streams = { stdout: stream(stdout), stderr: stream(stderr), stdin: new RecordedTerminal().stdin };
    return new Terminal({ ...streams, json: false, quiet: false, color: false }).draws;
  };
  t.same([drawsWith(true, true), drawsWith(true, false), drawsWith(false, true)], [true, false, false]);
  t.end();
});
