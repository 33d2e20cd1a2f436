import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { completionFor } from './completion.ts';
import { CliError } from './errors.ts';
import { RecordedTerminal } from './fixture.ts';
import { parseLabels } from './labels.ts';
import { parseCommandLine } from './program.ts';
import { referencePage } from './reference.ts';
import { quote } from './restoreByHand.ts';
import { verbs } from './verbs.ts';

const silent = (): void => undefined;

async function parse(...argv: readonly string[]) {
  const parsed = await parseCommandLine(argv, silent);
  if (parsed.kind !== 'verb') throw new Error('no verb was understood');
  return parsed.invocation;
}

void t.test('verbs, arguments and options are understood, global ones at any place', async (t) => {
  const typed = 'backup web-1 db-1 --json --storage local -s vault --mode save -l a=b --config /c.yaml';
  const { verb, args, options, globals } = await parse(...typed.split(' '));
  t.equal(verb.name, 'backup');
  t.same(args, ['web-1', 'db-1']);
  t.same(options.texts('storage'), ['local', 'vault']);
  t.equal(options.text('mode'), 'save');
  t.equal(options.flag('dryRun'), false);
  t.equal(globals.text('config'), '/c.yaml');
  t.equal(globals.flag('json'), true);
  t.equal((await parse('--config', '/c.yaml', 'job', 'show', 'x')).verb.name, 'job show');
  t.equal((await parse('backup', 'a', '--standalone')).globals.flag('standalone'), true);
  t.equal((await parse('status', '--watch')).options.flag('watch'), true);
});

void t.test('what cannot be understood is a usage error with the command that explains', async (t) => {
  const cases: readonly (readonly [string, string])[] = [
    ['', 'stillpoint --help'],
    ['nonsense', 'stillpoint --help'],
    ['show', 'stillpoint show --help'],
    ['doctor extra', 'stillpoint doctor --help'],
    ['backup a --nonsense', 'stillpoint backup --help'],
    ['backup a --mode fast', 'stillpoint backup --help'],
    ['job', 'stillpoint job --help'],
    ['restore a --start sometime', 'stillpoint restore --help'],
  ];
  for (const [typed, hint] of cases) {
    await t.rejects(parse(...typed.split(' ').filter(Boolean)), { code: 'USAGE', hint }, typed);
  }
});

void t.test('an option that would do nothing is refused', async (t) => {
  const recorded = new RecordedTerminal();
  const cli = { terminal: recorded.terminal, configPath: '/c.yaml', configIsNamed: true, verbose: false };
  const idle: readonly (readonly [string, RegExp])[] = [
    ['restore --host h@latest --to /d --as n', /--as$/],
    ['restore --host h@latest --to /d --in-place --start boot', /--in-place, --start$/],
    ['restore --host h@latest --to /d --map vda=/x --volume vda', /--volume, --map$|--map, --volume$/],
    ['restore --host h@latest --to /d --instant', /--instant$/],
    ['restore --host h@latest --to /d --network a=b', /--network$/],
    ['restore --host h@latest --to /d --no-safety-copy', /--no-safety-copy$/],
    ['backup --host --image /i', /--image$/],
    ['backup --host --mode disk --label a=b', /--mode, --label$|--label, --mode$/],
    ['backup --host --together', /--together$/],
    ['backup --host --exclude a', /--exclude$/],
    ['backup --host --reread --name n', /--reread, --name$|--name, --reread$/],
    ['backup --host --dry-run', /--dry-run$/],
    ['backup --image /i --exclude a', /--exclude$/],
    ['list --host node-1', /every host/],
    ['restore a --files /x --to /d --in-place', /--in-place$/],
    ['restore a --files /x --to /d --as n --start boot', /--as, --start$/],
    ['restore a --to /d --force', /--force$/],
    ['restore a --partition 1 --in-place', /--partition$/],
  ];
  for (const [typed, message] of idle) {
    const { run, args, options } = await parse(...typed.split(' '));
    await t.rejects(async () => run(cli, args, options), { code: 'USAGE', message }, typed);
  }
  const { run, args, options } = await parse('restore', '--host', 'h@latest', '--to', '/d', '--yes');
  await t.rejects(async () => run(cli, args, options), { code: 'CONFIG_MISSING' }, 'the others are known');
});

void t.test('what a later version will have is told apart from a mistake', async (t) => {
  const later = ['sync'];
  for (const typed of later) await t.rejects(parse(...typed.split(' ')), { code: 'NOT_AVAILABLE' }, typed);
});

void t.test('every verb has a program, a help page and examples that are understood', async (t) => {
  for (const verb of verbs) {
    t.type(await verb.load(), 'function', verb.name);
    for (const example of verb.examples) {
      const { verb: understood } = await parse(...(example.split(' > ')[0] ?? '').split(' '));
      t.equal(understood, verb, example);
    }
    let help = '';
    t.same(await parseCommandLine([...verb.name.split(' '), '--help'], (text) => (help += text)), {
      kind: 'told',
    });
    t.match(help, verb.summary.slice(0, 40));
    t.match(help, 'Examples:');
  }
});

void t.test('labels are key=value', async (t) => {
  t.same(parseLabels(['a=b', 'c=d=e', 'f=']), { a: 'b', c: 'd=e', f: '' });
  for (const wrong of ['a', '=b', '']) t.throws(() => parseLabels([wrong]), CliError);
});

void t.test('paths of the restore by hand are one word for the shell, whatever is in them', async (t) => {
  for (const path of ['/a/b.qcow2', "/it's", '/a b', '$(reboot)', '-rf', '`x`', 'a;b', '']) {
    const { stdout } = await execa('sh', ['-c', `printf '%s|' ${quote(path)}`], { timeout: 10_000 });
    t.equal(stdout, `${path}|`);
  }
});

void t.test('docs/CLI.md is what the program says of itself', async (t) => {
  const page = await readFile(join(import.meta.dirname, '../docs/CLI.md'), 'utf8');
  t.equal(page, referencePage(), 'scripts/with-node node cli/reference.ts > docs/CLI.md');
});

void t.test('completions offer verbs, words of job, and options', async (t) => {
  const offers = async (...words: readonly string[]): Promise<readonly string[]> => {
    const script = `${completionFor('bash').join('\n')}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _stillpoint; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout } = await execa('bash', ['-c', script, 'bash', 'stillpoint', ...words], {
      timeout: 10_000,
    });
    return stdout.split('\n');
  };
  t.same(await offers('ba'), ['backup']);
  t.same(await offers('job', 'wa'), ['watch']);
  t.same(await offers('job', 're'), ['resume', 'retry']);
  t.same(await offers('--json', 'restore', '--in-'), ['--in-place']);
  t.match(completionFor('zsh')[0], '#compdef');
  t.ok(completionFor('fish').every((line) => line.startsWith('complete ')));
  t.throws(() => completionFor('tcsh'), { code: 'USAGE' });
});
