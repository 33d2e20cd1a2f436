import { styleText } from 'node:util';

export type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow';

/** A piece of text with a style. Text is never styled before it is printed: what is in it is made harmless first. */
export interface StyledText {
  readonly text: string;
  readonly style: Style;
}

export type Text = string | StyledText;

/** Text in a style, where the terminal has them. */
export function styled(style: Style, text: string): StyledText {
  return { text, style };
}

/**
 * Control and format characters (what moves the cursor, hides text or turns its direction), line and paragraph
 * separators, halves of characters: names from machines and manifests may hold them, and a terminal would obey.
 */
const unprintable = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** The text with everything that a terminal would act on shown as `\u{…}`. */
export function printable(text: string): string {
  return text.replaceAll(unprintable, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`);
}

/** JSON on one line in which every such character is an escape (JSON itself lets most of them through). */
export function safeJson(value: unknown): string {
  return JSON.stringify(value).replaceAll(unprintable, (character) =>
    Array.from({ length: character.length }, (_, index) => {
      return `\\u${character.charCodeAt(index).toString(16).padStart(4, '0')}`;
    }).join(''),
  );
}

/** The characters for the terminal. */
export function render(text: Text, color: boolean): string {
  if (typeof text === 'string') return printable(text);
  const safe = printable(text.text);
  return color ? styleText(text.style, safe, { validateStream: false }) : safe;
}

/** How many columns a text takes, as far as can be told without knowing the font. */
export function widthOf(text: Text): number {
  return Array.from(printable(typeof text === 'string' ? text : text.text)).length;
}

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right' | undefined;
}

/** The lines of a table, title first; the last column is not padded. */
export function tableLines(
  columns: readonly Column[],
  rows: readonly (readonly Text[])[],
): readonly Text[][] {
  const all: readonly (readonly Text[])[] = [columns.map(({ title }) => styled('bold', title)), ...rows];
  const widths = columns.map((_, index) => Math.max(...all.map((row) => widthOf(row[index] ?? ''))));
  return all.map((row) =>
    columns.flatMap(({ align }, index) => {
      const cell = row[index] ?? '';
      const last = index === columns.length - 1;
      const space = ' '.repeat((widths[index] ?? 0) - widthOf(cell));
      const gap = last ? '' : '  ';
      return align === 'right' ? [space, cell, gap] : [cell, last ? '' : `${space}${gap}`];
    }),
  );
}
