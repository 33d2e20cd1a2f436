import { assert, property, string } from 'fast-check';
import t from 'tap';
import { RecordedTerminal } from './fixture.ts';
import { printable, render, safeJson, styled, tableLines } from './output.ts';

/** What a terminal or a log reader could act on. */
const dangerous = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u;
const hostile = 'web\u001b[2J\u009b31m\u001b]0;title\u0007\n\u202eevil\ud800';

void t.test('control characters of names are shown and never obeyed', async (t) => {
  t.equal(printable(hostile), String.raw`web\u{1b}[2J\u{9b}31m\u{1b}]0;title\u{7}\u{a}\u{202e}evil\u{d800}`);
  t.equal(printable('Zürich – 東京 ✓'), 'Zürich – 東京 ✓', 'what is harmless stays');
});

void t.test('no text whatever brings a control character to the terminal', async (t) => {
  const seed = Date.now();
  t.comment(`seed ${seed}`);
  assert(
    property(string({ unit: 'binary' }), (text) => {
      const plain = !dangerous.test(printable(text)) && !dangerous.test(safeJson({ [text]: text }));
      const same: unknown = JSON.parse(safeJson([text]));
      return plain && Array.isArray(same) && same[0] === text;
    }),
    { seed },
  );
  const recorded = new RecordedTerminal();
  recorded.terminal.out(hostile, styled('red', hostile));
  recorded.terminal.error(new Error(`${hostile}\nhint: obey`), hostile);
  recorded.terminal.table([{ title: hostile }], [[hostile]]);
  const lines = `${recorded.stdout}${recorded.stderr}`.split('\n');
  t.same(
    lines.filter((line) => dangerous.test(line)),
    [],
  );
  t.notOk(
    lines.some((line) => line.startsWith('hint: obey')),
    'a message cannot pretend to be a hint',
  );
});

void t.test('a table keeps its columns, also with names that had to be made harmless', async (t) => {
  const lines = tableLines(
    [{ title: 'NAME' }, { title: 'SIZE', align: 'right' }, { title: 'ID' }],
    [
      ['a\tb', '1 B', 'x'],
      ['long-name', styled('red', '10 MiB'), 'y'],
    ],
  );
  t.same(
    lines.map((line) => line.map((part) => render(part, false)).join('')),
    ['NAME         SIZE  ID', String.raw`a\u{9}b       1 B  x`, 'long-name  10 MiB  y'],
  );
});

void t.test('colours appear on a terminal only', async (t) => {
  const styledLine = (isTTY: boolean): string => {
    const recorded = new RecordedTerminal({ isTTY });
    recorded.terminal.out(styled('red', 'x'));
    return recorded.stdout;
  };
  t.equal(styledLine(false), 'x\n');
  t.match(styledLine(true), '\u001b[31mx');
});
