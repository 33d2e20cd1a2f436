import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { RecordedTerminal } from './fixture.ts';
import { parseCommandLine } from './program.ts';

const resultSchema = z.looseObject({
  recoveryKey: z.string().nullable().default(null),
  keys: z.array(z.looseObject({ id: z.string(), kind: z.string(), label: z.string() })).default([]),
});
type Result = z.infer<typeof resultSchema>;

/** A host with a repository `vault`, as its administrator has it in front of him. */
class Host {
  readonly keyFile: string;
  readonly #config: string;

  private constructor(directory: string) {
    this.keyFile = join(directory, 'vault.key');
    this.#config = join(directory, 'config.yaml');
  }

  static async make(t: Test): Promise<Host> {
    const directory = t.testdir();
    const host = new Host(directory);
    const vault = { kind: 'repository', url: `file://${join(directory, 'vault')}`, keyFile: host.keyFile };
    const agent = { stateDir: join(directory, 'state') };
    // JSON is YAML.
    await writeFile(host.#config, JSON.stringify({ agent, storages: { vault } }), { mode: 0o600 });
    return host;
  }

  /** Types a command, and `input` where it asks. Rejects as the command does. */
  async type(
    words: string,
    { input = '', isTTY = false }: { readonly input?: string; readonly isTTY?: boolean } = {},
  ): Promise<RecordedTerminal> {
    const parsed = await parseCommandLine(words.split(' '), () => undefined);
    if (parsed.kind === 'told') throw new Error('only help was asked for');
    const { run, args, options, globals } = parsed.invocation;
    const recorded = new RecordedTerminal({ json: globals.flag('json'), isTTY });
    recorded.stdin.write(input);
    if (!isTTY) recorded.stdin.end();
    const { terminal } = recorded;
    await run({ terminal, configPath: this.#config, configIsNamed: true, verbose: false }, args, options);
    return recorded;
  }

  async result(words: string, input = ''): Promise<Result> {
    return resultSchema.parse(JSON.parse((await this.type(`${words} --json`, { input })).stdout));
  }

  /** The kinds of all keys. */
  async kinds(): Promise<readonly string[]> {
    return (await this.result('storage keys vault')).keys.map(({ kind }) => kind).toSorted();
  }
}

void t.test('new keys shut everybody else out, who are named before that is done', async (t) => {
  const host = await Host.make(t);
  await host.type('storage init vault');
  const second = join(t.testdirName, 'second.key');
  await host.type(`storage keys vault --add-file ${second}`);
  await t.rejects(host.type('storage keys vault --rotate'), { code: 'NOT_CONFIRMED' });
  t.same(await host.kinds(), ['keyFile', 'keyFile', 'recovery'], 'and nothing was done');
  const { stdout, stderr } = await host.type('storage keys vault --rotate --yes');
  t.match(stderr, /these open storage vault no more once it has new keys/);
  t.match(stderr, new RegExp(`keyFile +all +- +${second}`));
  t.match(stderr, /recovery +all +- +recovery key/);
  t.match(stdout, /new keys \(generation 2\)/);
  const printed = /([0-9A-Z]{4}-){13}[0-9A-Z]{4}/.exec(stdout)?.[0] ?? '';
  t.same(await host.kinds(), ['keyFile', 'recovery']);
  const before = await readFile(host.keyFile, 'utf8');
  await rm(host.keyFile);
  await host.type('storage keys vault --recover', { input: `${printed}\n` });
  t.not(await readFile(host.keyFile, 'utf8'), before, 'the new recovery key opens it');
});

void t.test('where nobody is shut out nobody is asked', async (t) => {
  const host = await Host.make(t);
  await host.type('storage init vault --no-recovery-key');
  t.match(await host.result('storage keys vault --rotate'), {
    recoveryKey: null,
    rotated: { generation: 2, closed: [] },
    keys: { length: 1 },
  });
});

void t.test('a passphrase makes the key file anew', async (t) => {
  const host = await Host.make(t);
  await host.type('storage init vault --no-recovery-key');
  await t.rejects(host.type('storage keys vault --add-passphrase', { input: 'too short\n' }), {
    code: 'USAGE',
    message: /at least 12 characters/,
  });
  await host.type('storage keys vault --add-passphrase', { input: 'twelve garcons\n' });
  t.same(await host.kinds(), ['keyFile', 'passphrase']);
  await rm(host.keyFile);
  const recover = 'storage keys vault --recover --passphrase';
  await t.rejects(host.type(recover, { input: 'twelve gardens\n' }), {
    code: 'KEY_WRONG',
    message: /opens with this passphrase/,
    hint: /--recover$/,
  });
  const { stdout } = await host.type(recover, { input: 'twelve garcons\n' });
  t.match(stdout, `opens again with ${host.keyFile}, which was made`);
  t.same(await host.kinds(), ['keyFile', 'keyFile', 'passphrase']);
});

void t.test('at a terminal a passphrase is typed twice, and not shown', async (t) => {
  const host = await Host.make(t);
  await host.type('storage init vault --no-recovery-key');
  const add = 'storage keys vault --add-passphrase';
  const mistyped = host.type(add, { input: 'twelve garcons\ntwelve gardens\n', isTTY: true });
  await t.rejects(mistyped, { code: 'USAGE', message: /not the same/ });
  t.same(await host.kinds(), ['keyFile']);
  const { stderr } = await host.type(add, { input: 'twelve garcons\ntwelve garcons\n', isTTY: true });
  t.match(stderr, /The new passphrase: \nOnce more: \n/);
  t.notMatch(stderr, /garcons/);
  t.same(await host.kinds(), ['keyFile', 'passphrase']);
});

void t.test('a key file that only writes says so, and changes no keys', async (t) => {
  const host = await Host.make(t);
  await host.type('storage init vault');
  const add = `storage keys vault --add-file ${host.keyFile} --write-only`;
  await t.rejects(host.type(add), { code: 'KEY_SLOT_IN_USE', message: /reads storage vault already/ });
  const second = join(t.testdirName, 'second.key');
  await host.type(`storage keys vault --add-file ${second} --write-only`);
  await rename(second, host.keyFile);
  const { stdout } = await host.type('storage keys vault');
  t.match(stdout, new RegExp(`keyFile +write only +opens it +${second}`));
  t.match((await host.type('storage show vault')).stdout, /this host may write, and not read/);
  t.match(JSON.parse((await host.type('storage show vault --json')).stdout), {
    repository: { access: 'write only' },
  });
  const third = join(t.testdirName, 'third.key');
  const [slot] = (await host.result('storage keys vault')).keys;
  for (const words of ['--add-recovery', `--add-file ${third}`, '--rotate --yes', `--remove ${slot?.id}`])
    await t.rejects(host.type(`storage keys vault ${words}`), {
      code: 'KEY_WRITE_ONLY',
      hint: /storage keys vault --recover/,
    });
  await t.rejects(readFile(third), { code: 'ENOENT' }, 'nor is a key file made in vain');
  await t.rejects(host.type('storage gc vault'), { code: 'KEY_WRITE_ONLY' });
  await t.rejects(host.type('storage check vault --data'), { code: 'KEY_WRITE_ONLY' });
  await host.type('storage check vault');
});

void t.test('with the recovery key a host is let in to write only, or to read', async (t) => {
  const host = await Host.make(t);
  const { recoveryKey } = await host.result('storage init vault');
  await rm(host.keyFile);
  const input = `${recoveryKey}\n`;
  await host.type('storage keys vault --recover --write-only', { input });
  await t.rejects(host.type('storage keys vault --add-recovery'), { code: 'KEY_WRITE_ONLY' });
  await host.type('storage keys vault --recover', { input });
  await host.type('storage keys vault --add-recovery');
});

void t.test('one thing is changed at a time, and options go with what they are for', async (t) => {
  const host = await Host.make(t);
  for (const words of [
    '--add-recovery --rotate',
    '--force',
    '--passphrase',
    '--yes --add-recovery',
    '--write-only',
  ])
    await t.rejects(host.type(`storage keys vault ${words}`), { code: 'USAGE' }, words);
});
