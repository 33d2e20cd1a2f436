import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { X509Certificate } from 'node:crypto';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { IdentityStore } from '../agent/identity/identityStore.ts';
import { temporaryDirectory } from '../test/tls/authority.ts';
import { type ControllerBench, startController } from '../test/tls/controllerBench.ts';
import { type KeptPolicies, PushedFile } from '../config/pushedFile.ts';
import { agentJoin } from './commands/agentJoin.ts';
import { agentLeave } from './commands/agentLeave.ts';
import { checkIdentityOf } from './doctor/identity.ts';
import { controllerRevoke } from './commands/controllerRevoke.ts';
import { controllerToken } from './commands/controllerToken.ts';
import { RecordedTerminal } from './fixture.ts';
import { Options } from './options.ts';

interface Bench {
  readonly controller: ControllerBench;
  readonly fingerprint: string;
  readonly store: IdentityStore;
  readonly stateDir: string;
  readonly tokenFile: string;
  readonly token: string;
  readonly recorded: RecordedTerminal;
  /** Types `agent join` with these options. */
  readonly type: (options: Readonly<Record<string, unknown>>) => Promise<unknown>;
  /** Starts it as a process of its own, with the token on stdin and the right fingerprint. */
  readonly start: () => ReturnType<typeof startCommand>;
}

async function prepare(t: Test, terminal: { readonly isTTY?: boolean } = {}): Promise<Bench> {
  const controller = await startController(t, { name: 'c1' });
  const directory = await temporaryDirectory(t, 'join');
  const [stateDir, tokenFile, configPath] = ['state', 'token', 'c.yaml'].map((name) => join(directory, name));
  if (stateDir === undefined || tokenFile === undefined || configPath === undefined)
    throw new Error('unnamed');
  await writeFile(configPath, `agent: { stateDir: ${stateDir} }\n`);
  const token = controller.ca.issueToken();
  await writeFile(tokenFile, `${token}\n`);
  const recorded = new RecordedTerminal(terminal);
  const cli = { terminal: recorded.terminal, configPath, configIsNamed: true, verbose: false };
  const fingerprint = new X509Certificate(controller.ca.certificate).fingerprint256;
  const words = ['agent', 'join', controller.address, '--token-stdin', '--ca-fingerprint', fingerprint];
  return {
    controller,
    fingerprint,
    store: new IdentityStore(join(stateDir, 'identity')),
    stateDir,
    tokenFile,
    token,
    recorded,
    type: (options) => agentJoin(cli, [controller.address], new Options(options)),
    start: () => startCommand([...words, '--config', configPath, '--json'], token),
  };
}

function startCommand(words: readonly string[], token: string) {
  const main = join(import.meta.dirname, 'main.ts');
  return execa(process.execPath, [main, ...words], { input: `${token}\n`, timeout: 30_000, reject: false });
}

void t.test(
  'a host joins without a question when it knows the fingerprint, and shows no token',
  async (t) => {
    const { type, store, tokenFile, token, fingerprint, recorded, stateDir, controller } = await prepare(t);
    t.equal(await type({ tokenFile, caFingerprint: fingerprint.toLowerCase() }), 0);
    t.match(await store.current(), { controller: { name: 'c1' }, generation: 1 });
    t.match(recorded.stdout, /joined c1 at 127\.0\.0\.1/);
    t.notMatch(recorded.stdout + recorded.stderr + controller.log.join(''), token);
    for (const name of await readdir(stateDir, { recursive: true })) {
      const path = join(stateDir, name);
      if ((await stat(path)).isFile()) t.notMatch(await readFile(path, 'latin1'), token, name);
    }
    const settings = { stateDir, listen: null };
    t.match(await checkIdentityOf(settings, new Date()), [{ verdict: 'ok', message: /joined c1/ }]);
    const later = (days: number) => new Date(Date.now() + days * 24 * 3_600_000);
    t.match(await checkIdentityOf(settings, later(75)), [
      { verdict: 'warn', message: /should have been renewed/ },
    ]);
    t.match(await checkIdentityOf(settings, later(91)), [
      { verdict: 'fail', message: /CERTIFICATE_EXPIRED/ },
    ]);
  },
);

void t.test('another fingerprint than the one given ends it before anything is sent', async (t) => {
  const { type, store, tokenFile, fingerprint, controller } = await prepare(t);
  const wrong = fingerprint.replace(/^../, (first) => (first === '00' ? '11' : '00'));
  await t.rejects(type({ tokenFile, caFingerprint: wrong, yes: true }), { code: 'CONTROLLER_UNTRUSTED' });
  t.equal(await store.generation(), 0);
  t.notMatch(controller.log.join(''), /joined/);
});

void t.test('without a fingerprint somebody says that the CA is the right one', async (t) => {
  const silent = await prepare(t);
  await t.rejects(silent.type({ tokenFile: silent.tokenFile }), { code: 'NOT_CONFIRMED' });
  t.match(silent.recorded.stderr, silent.fingerprint);
  t.equal(await silent.store.generation(), 0);
  t.equal(await silent.type({ tokenFile: silent.tokenFile, yes: true }), 0, 'or --yes does');
  const asked = await prepare(t, { isTTY: true });
  asked.recorded.stdin.end('yes\n');
  t.equal(await asked.type({ tokenFile: asked.tokenFile }), 0);
});

void t.test('to join again is asked, too, and the earlier certificate is replaced', async (t) => {
  const { type, store, tokenFile, fingerprint, controller } = await prepare(t);
  await type({ tokenFile, caFingerprint: fingerprint });
  const hostId = (await store.current())?.hostId ?? '';
  const token = controller.ca.issueToken({ hostId });
  await writeFile(tokenFile, token);
  await t.rejects(type({ tokenFile, caFingerprint: fingerprint }), { code: 'NOT_CONFIRMED' });
  t.equal(await type({ tokenFile, caFingerprint: fingerprint, yes: true }), 0);
  t.equal(await store.generation(), 2);
});

void t.test('a token comes by a file or by stdin, and by nothing else', async (t) => {
  const { type, tokenFile, fingerprint, recorded, token } = await prepare(t);
  for (const options of [{}, { tokenFile, tokenStdin: true }, { tokenFile: `${tokenFile}-none` }])
    await t.rejects(type(options), { code: 'USAGE' });
  await writeFile(tokenFile, 'two words\n');
  await t.rejects(type({ tokenFile }), { code: 'USAGE', message: /holds no token/ });
  recorded.stdin.end(`${token}\n`);
  t.equal(await type({ tokenStdin: true, caFingerprint: fingerprint }), 0);
});

void t.test(
  'a command that is killed when its token is used up is repeated with the same token',
  async (t) => {
    const { start, store, controller } = await prepare(t);
    const killed = start();
    controller.onLog = (line) => {
      if (line.includes('a host has joined')) killed.kill('SIGKILL');
    };
    t.equal((await killed).signal, 'SIGKILL');
    controller.onLog = () => undefined;
    const { exitCode, stdout, stderr } = await start();
    t.equal(exitCode, 0, stderr);
    t.match(JSON.parse(stdout), { controller: { name: 'c1' }, hostId: (await store.current())?.hostId });
  },
);

void t.test('an address that is none is a usage error', async (t) => {
  const recorded = new RecordedTerminal();
  const cli = { terminal: recorded.terminal, configPath: '/c.yaml', configIsNamed: true, verbose: false };
  await t.rejects(agentJoin(cli, ['controller'], new Options({})), { code: 'USAGE', message: /HOST:PORT/ });
});

void t.test('tokens are made, and hosts revoked, beside a controller that runs', async (t) => {
  const { store, type, tokenFile, controller } = await prepare(t);
  const recorded = new RecordedTerminal({ json: true });
  const cli = { terminal: recorded.terminal, configPath: '/c.yaml', configIsNamed: true, verbose: false };
  const dir = controller.directory;
  t.equal(await controllerToken(cli, [], new Options({ ca: dir, valid: '5m' })), 0);
  const made = z.object({ token: z.string(), caFingerprint: z.string() }).parse(JSON.parse(recorded.stdout));
  await writeFile(tokenFile, made.token);
  t.equal(await type({ tokenFile, caFingerprint: made.caFingerprint }), 0);
  const identity = await store.current();
  const serial = new X509Certificate(identity?.certificate ?? '').serialNumber;
  t.ok(controller.ca.isGood(serial));
  t.equal(await controllerRevoke(cli, [], new Options({ ca: dir, hostId: identity?.hostId })), 0);
  t.notOk(controller.ca.isGood(serial));
  for (const wrong of [{}, { dir }, { dir, hostId: 'a', serial: 'b' }])
    await t.rejects(async () => controllerRevoke(cli, [], new Options(wrong)), { code: 'USAGE' });
  for (const wrong of [{}, { dir, hostId: 'a' }, { dir, valid: 'soon' }])
    await t.rejects(async () => controllerToken(cli, [], new Options(wrong)), { code: 'USAGE' });
});

/** Something that was pushed to a host. */
function pushedBy(setBy: string): KeptPolicies {
  return { revision: 7, document: '{"policies":{"default":{}}}', setBy, setAt: '2026-11-22T10:00:00.000Z' };
}

void t.test('a host that leaves has no identity, and nothing that its controller has pushed', async (t) => {
  const { type, store, tokenFile, fingerprint, recorded, stateDir } = await prepare(t);
  const configPath = join(stateDir, '..', 'c.yaml');
  const cli = { terminal: recorded.terminal, configPath, configIsNamed: true, verbose: false };
  const leave = (options = {}) => agentLeave(cli, [], new Options(options));
  const file = new PushedFile(stateDir);
  t.equal(await leave(), 0, 'who has joined nobody has nothing to leave');
  t.match(recorded.stdout, /has joined no controller/);
  await type({ tokenFile, caFingerprint: fingerprint });
  await file.write(pushedBy('controller:c1'));
  await t.rejects(leave(), { code: 'NOT_CONFIRMED' });
  t.ok(await store.current());
  t.ok((await file.read()).kept, 'nothing was done');
  t.equal(await leave({ yes: true }), 0);
  t.equal(await store.current(), null);
  t.same(await file.read(), { kept: null, problem: null });
  t.match(recorded.stdout, /left c1/);
  t.match(recorded.stderr, /controller revoke --host-id/);
  // One that was killed in between.
  await file.write(pushedBy('controller:c1'));
  t.equal(await leave(), 0);
  t.same(await file.read(), { kept: null, problem: null });
  await file.write(pushedBy('socket:uid 0'));
  t.equal(await leave(), 0);
  t.match(await file.read(), { kept: { setBy: 'socket:uid 0' } }, 'what root has set here stays');
});

void t.test(
  'who joins the same controller again keeps what it has pushed, with another one it goes',
  async (t) => {
    const { type, tokenFile, fingerprint, stateDir, controller, store } = await prepare(t);
    await type({ tokenFile, caFingerprint: fingerprint });
    const file = new PushedFile(stateDir);
    await file.write(pushedBy('controller:c1'));
    await writeFile(tokenFile, controller.ca.issueToken({ hostId: (await store.current())?.hostId ?? '' }));
    await type({ tokenFile, caFingerprint: fingerprint, yes: true });
    t.match(await file.read(), { kept: { revision: 7 } });

    const other = await startController(t, { name: 'c2' });
    await writeFile(tokenFile, other.ca.issueToken());
    const recorded = new RecordedTerminal();
    const configPath = join(stateDir, '..', 'c.yaml');
    const cli = { terminal: recorded.terminal, configPath, configIsNamed: true, verbose: false };
    t.equal(await agentJoin(cli, [other.address], new Options({ tokenFile, yes: true })), 0);
    t.same(await file.read(), { kept: null, problem: null });
    t.match(recorded.stderr, /what the controller before has pushed is removed/);
  },
);
