import { exitCodes, exitMeanings } from './exitCodes.ts';
import { globalOptions, type VerbOption, verbs } from './verbs.ts';

/**
 * The reference of the command line, `docs/CLI.md`, made of the tables that the program itself uses; a test says
 * when the page is not what this gives. Run this file to print it.
 */
export function referencePage(): string {
  return `${[...introduction(), ...verbSections(), ...exitSection(), ...formSection()].join('\n')}\n`;
}

function introduction(): readonly string[] {
  return [
    '# The command line',
    '',
    'Made from the program by `scripts/with-node node cli/reference.ts > docs/CLI.md`; a test compares the two.',
    '',
    '`stillpoint VERB [options]`. Every verb explains itself with `--help`. `BACKUP` is an id, the first 8 characters',
    'of one or more, `MACHINE@latest`, or `MACHINE@T1` (as `20261120T151523.123Z` or `2026-11-20T15:15:23.123Z`);',
    '`ID` of a job likewise. The options of the program may stand anywhere:',
    '',
    ...optionTable(globalOptions),
    '',
    'Verbs marked *changes* first bring jobs to their end whose process died (and say so on stderr). The others change',
    'nothing; when they find unfinished work they print what they were asked for, name the job and the command to type,',
    'and exit 9. The same is true of these forms of marked verbs: those with `--dry-run`, `verify` without `--boot`, and',
    '`restore --host`, which writes its files into the directory of `--to` and nothing else.',
    '',
    '`Ctrl-C`, SIGTERM and SIGHUP ask the jobs of the command to end. The command stays until every machine is in order',
    '(a merge that has begun is completed), and exits 130; a job that could not be stopped any more finishes, with 0.',
    '',
  ];
}

function verbSections(): readonly string[] {
  return verbs.flatMap((verb) => [
    `## stillpoint ${`${verb.name} ${verb.arguments}`.trim()}`,
    '',
    `${verb.summary[0]?.toUpperCase() ?? ''}${verb.summary.slice(1)}.${verb.changes ? ' *(changes)*' : ''}`,
    '',
    ...(verb.options.length === 0 ? [] : [...optionTable(verb.options), '']),
    '```sh',
    ...verb.examples.map((example) => `stillpoint ${example}`),
    '```',
    '',
  ]);
}

function optionTable(options: readonly VerbOption[]): readonly string[] {
  const rows = options.map(({ flags, description, choices }) => {
    const all = choices === undefined ? description : `${description} (${choices.join(', ')})`;
    return `| \`${flags}\` | ${all.replaceAll('|', String.raw`\|`)} |`;
  });
  return ['| option | |', '|---|---|', ...rows];
}

function exitSection(): readonly string[] {
  const rows = Object.entries(exitMeanings).map(([exit, meaning]) => {
    const codes = Object.entries(exitCodes).filter(([, code]) => String(code) === exit);
    return `| ${exit} | ${meaning} | ${codes.map(([name]) => `\`${name}\``).join(' ')} |`;
  });
  return [
    '## Exit codes',
    '',
    '| code | meaning | errors |',
    '|---|---|---|',
    ...rows,
    '',
    'Of several machines in one command: 0 when all went well, 3 when some did, 1 when none did (or their common code).',
    'A job that was left with work to do is always 9.',
    '',
  ];
}

function formSection(): readonly string[] {
  return [
    '## Output',
    '',
    'Results go to stdout; progress, remarks, warnings and errors to stderr. An error is `CODE: what happened` and',
    '`hint: what to type next`; with `--json` it is one line on stderr:',
    '',
    '```json',
    '{"error":{"code":"MACHINE_NOT_FOUND","message":"…","hint":"stillpoint machines","retryable":false,"about":"web-1"}}',
    '```',
    '',
    'With `--json`, stdout has one object on a line: `doctor` `{"checks":[…]}`, `machines` `{"machines":[…]}`, `list`',
    '`{"backups":[…]}`, `jobs` `{"jobs":[…]}`. `show` and `backup` print the fields of the manifest, and beside them',
    '`state` (`Active`, or `Killed` for a damaged one), `problem`, `protected` and `storages` (`name`, `directory`,',
    '`local`, `state`, `problem`, `protected`, `protectedReason`). `backup`, `verify` and `job watch` print one line for',
    'each machine, copy and change, `prune` one for each backup in each storage (`keep`, `reasons`, `removed`, `error`).',
    '`verify` with `--older-than` or `--budget` ends with `verified`, `left`, `neverRead`, `oldestReadAt`, `interrupted`.',
    '`protect` prints the backup as `show` does. `restore` prints',
    '`{"plan":…}` before the question and `{"job":…}` after the work. Times are RFC 3339 in UTC.',
    '',
    'Control characters in names and texts are shown as `\\u{…}` and never reach the terminal.',
  ];
}

if (import.meta.main) process.stdout.write(referencePage());
