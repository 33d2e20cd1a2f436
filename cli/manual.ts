import { version } from '../common/version.ts';
import { exitMeanings } from './exitCodes.ts';
import { globalOptions, type Verb, type VerbOption, verbs } from './verbs.ts';

/** A page of the manual, section 1. */
export interface ManualPage {
  /** Without its section, such as `stillpoint-job-show`. */
  readonly name: string;
  /** man(7). */
  readonly text: string;
}

/**
 * The manual: a page of the program, and one of each verb, made of the tables that the program itself uses.
 * @param date of the pages, `YYYY-MM-DD`
 */
export function manualPages(date: string): readonly ManualPage[] {
  return [
    { name: 'stillpoint', text: lines(programPage(date)) },
    ...verbs.map((verb) => ({ name: pageOf(verb), text: lines(verbPage(verb, date)) })),
  ];
}

function pageOf({ name }: Verb): string {
  return `stillpoint-${name.replaceAll(' ', '-')}`;
}

function programPage(date: string): readonly string[] {
  return [
    ...head('stillpoint', date, 'backs up running KVM machines at one instant, and brings them back to it'),
    '.SH SYNOPSIS',
    '.B stillpoint',
    '.I VERB',
    '[options]',
    '.SH DESCRIPTION',
    text(
      'Stillpoint backs up a running KVM machine at one instant (every disk together, and CPU and memory too where that is asked for) and brings it back to exactly that instant.',
    ),
    '.PP',
    text(
      'BACKUP is an id, the first 8 characters of one or more, MACHINE@latest, or MACHINE@T1; ID of a job likewise.',
    ),
    '.SH VERBS',
    ...verbs.flatMap((verb) => item(bold(`${verb.name} ${verb.arguments}`.trim()), verb.summary)),
    '.SH OPTIONS',
    'They may stand anywhere.',
    ...options(globalOptions),
    ...exitStatus(),
    '.SH ENVIRONMENT',
    ...item(bold('STILLPOINT_CONFIG'), 'configuration, unless --config names one'),
    ...item(bold('STILLPOINT_LOG'), 'level of the log of the service'),
    '.SH FILES',
    ...item(italic('/etc/stillpoint/config.yaml'), 'configuration; /usr/share/doc/stillpoint has an example'),
    ...item(italic('/var/lib/stillpoint'), 'the journal of all jobs'),
    '.SH SEE ALSO',
    verbs.map((verb) => `${bold(pageOf(verb))}(1)`).join(',\n'),
  ];
}

function verbPage(verb: Verb, date: string): readonly string[] {
  return [
    ...head(pageOf(verb), date, verb.summary),
    '.SH SYNOPSIS',
    `.B stillpoint ${hyphens(verb.name)}`,
    ...(verb.arguments === '' ? [] : [text(verb.arguments)]),
    '[options]',
    '.SH DESCRIPTION',
    text(`${verb.summary[0]?.toUpperCase() ?? ''}${verb.summary.slice(1)}.`),
    ...(verb.changes ? ['.PP', 'Jobs whose process died are brought to their end first.'] : []),
    ...(verb.options.length === 0 ? [] : ['.SH OPTIONS', ...options(verb.options)]),
    '.SH EXAMPLES',
    '.nf',
    ...verb.examples.map((example) => hyphens(`stillpoint ${example}`)),
    '.fi',
    ...exitStatus(),
    '.SH SEE ALSO',
    `${bold('stillpoint')}(1)`,
  ];
}

function head(name: string, date: string, summary: string): readonly string[] {
  return [
    `.TH ${name.toUpperCase()} 1 "${date}" "Stillpoint ${version}" "Stillpoint"`,
    // No words are broken at line ends: names of options could not be told from hyphens.
    '.nh',
    '.SH NAME',
    `${hyphens(name)} \\- ${text(summary)}`,
  ];
}

function options(all: readonly VerbOption[]): readonly string[] {
  return all.flatMap(({ flags, description, choices }) =>
    item(bold(flags), choices === undefined ? description : `${description} (${choices.join(', ')})`),
  );
}

function exitStatus(): readonly string[] {
  const rows = Object.entries(exitMeanings).flatMap(([code, meaning]) => item(bold(code), meaning));
  return ['.SH EXIT STATUS', ...rows];
}

function item(term: string, description: string): readonly string[] {
  return ['.TP', term, text(description)];
}

function bold(words: string): string {
  return `\\fB${hyphens(words)}\\fR`;
}

function italic(words: string): string {
  return `\\fI${hyphens(words)}\\fR`;
}

/** What is typed: every hyphen is one, and may be copied. */
function hyphens(words: string): string {
  return escaped(words).replaceAll('-', String.raw`\-`);
}

/** Running text, in which options are typed as well. */
function text(words: string): string {
  return escaped(words).replaceAll('--', String.raw`\-\-`);
}

/** A backslash begins an escape, and a full stop or an apostrophe at the beginning of a line a request. */
function escaped(words: string): string {
  return words.replaceAll('\\', String.raw`\e`).replaceAll(/^(?=[.'])/gm, String.raw`\&`);
}

function lines(page: readonly string[]): string {
  return `${page.join('\n')}\n`;
}
