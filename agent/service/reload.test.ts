import { rename, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import t, { type Test } from 'tap';
import * as z from 'zod';
import { eventually } from '../../test/lab/eventually.ts';
import { createLogger } from '../../common/log.ts';
import { PushedPolicies, type PushTarget } from '../api/pushedPolicies.ts';
import { loadConfig } from '../../config/config.ts';
import type { Config } from '../../config/schema.ts';
import { followConfiguration } from './reload.ts';

const lineSchema = z.looseObject({ msg: z.string() });
const text = (path: string, more = ''): string =>
  `storages: { local: { kind: directory, path: ${path} } }\n${more}`;

/** A service that follows a file, without anything else of a service. */
async function follower(t: Test, { failing = 0 } = {}) {
  let failures = failing;
  const directory = t.testdir({ 'config.yaml': '', state: {} });
  const stateDir = join(directory, 'state');
  const file = join(directory, 'config.yaml');
  await writeFile(file, text('/one', `agent: { stateDir: ${stateDir} }\n`));
  const said: z.output<typeof lineSchema>[] = [];
  const destination = new Writable({
    write: (line: Buffer, _, done) => {
      said.push(lineSchema.parse(JSON.parse(String(line))));
      done();
    },
  });
  const followed: Config[] = [];
  const agent: PushTarget = { parts: { ...(await loadConfig(file)), configPath: file } };
  const pushed = new PushedPolicies({ agent, log: createLogger({ level: 'silent' }) });
  await pushed.open();
  const stop = new AbortController();
  const loaded = await loadConfig(file);
  const following = followConfiguration({
    loaded,
    configPath: file,
    log: createLogger({ destination }),
    signal: stop.signal,
    pushed,
    follow: async ({ config }) => {
      if (failures-- > 0) throw new Error('not now');
      followed.push(config);
      return [];
    },
  });
  t.teardown(async () => {
    stop.abort();
    await following;
  });
  const replace = async (content: string): Promise<void> => {
    await writeFile(`${file}.new`, content);
    await rename(`${file}.new`, file);
  };
  const saidOf = (msg: RegExp) => said.filter((line) => msg.test(line.msg));
  return { replace, followed, saidOf, stop, following, pushed, stateDir };
}

void t.test(
  'a changed file is followed, a wrong one is told once, with its place, and changes nothing',
  async (t) => {
    const { replace, followed, saidOf } = await follower(t);
    await replace(text('/two'));
    await eventually(() => followed.length === 1);
    t.match(followed, [{ storages: { local: { path: '/two' } } }]);
    const wrong = text('/three', 'policies: { default: { mode: fast } }\n');
    await replace(wrong);
    await eventually(() => saidOf(/refused/).length === 1);
    t.match(saidOf(/refused/), [{ err: { message: /config\.yaml:2:24: policies\.default\.mode/ } }]);
    await replace(`${wrong}# saved once more\n`);
    // That nothing is said has no event; it is read a tenth of a second after the last change.
    await sleep(500);
    await replace(text('/four'));
    await eventually(() => followed.length === 2);
    t.equal(saidOf(/refused/).length, 1);
    t.match(followed[1], { storages: { local: { path: '/four' } } });
  },
);

void t.test('what a running service cannot change is said, and the rest is followed', async (t) => {
  const { replace, followed, saidOf, stateDir } = await follower(t);
  await replace(text('/two', 'agent: { stateDir: /elsewhere, maxParallelMachines: 5 }\n'));
  await eventually(() => saidOf(/needs a restart/).length === 1);
  t.match(saidOf(/needs a restart/), [{ keys: ['agent.stateDir'] }]);
  t.match(followed, [{ agent: { stateDir, maxParallelMachines: 5 } }]);
});

void t.test('SIGHUP ends nothing, reads it again, and says what came of it', async (t) => {
  const before = process.listenerCount('SIGHUP');
  const { replace, followed, saidOf, stop, following } = await follower(t);
  // What is said once the watch has begun.
  await replace(text('/two'));
  await eventually(() => followed.length === 1);
  process.kill(process.pid, 'SIGHUP');
  await eventually(() => saidOf(/has not changed/).length === 1);
  await replace('storages: [');
  process.kill(process.pid, 'SIGHUP');
  await eventually(() => saidOf(/refused/).length >= 1);
  stop.abort();
  await following;
  t.equal(process.listenerCount('SIGHUP'), before, 'nothing is left of it');
});

void t.test('a configuration that could not be followed is tried again at SIGHUP', async (t) => {
  const { replace, followed, saidOf } = await follower(t, { failing: 1 });
  await replace(text('/two'));
  await eventually(() => saidOf(/could not be followed/).length === 1);
  process.kill(process.pid, 'SIGHUP');
  await eventually(() => followed.length === 1);
  t.match(followed, [{ storages: { local: { path: '/two' } } }]);
  t.same(saidOf(/has not changed/), []);
});

void t.test(
  'what is pushed is in force when its call is answered, also while the files are wrong',
  async (t) => {
    const { replace, followed, saidOf, pushed } = await follower(t);
    const push = (revision: number, mode: string): Promise<boolean> => {
      const document = JSON.stringify({ policies: { default: { mode } } });
      return pushed.set({ revision, document, validateOnly: false }, { kind: 'controller', name: 'c1' });
    };
    await eventually(() => pushed.follow !== null);
    await push(1, 'disk');
    t.equal(followed.at(-1)?.policies['default@controller']?.mode, 'disk');
    t.match(saidOf(/is in force/).at(-1), { pushedRevision: 1 });
    await replace('storages: [');
    await eventually(() => saidOf(/refused/).length === 1);
    await push(2, 'save');
    const last = followed.at(-1);
    t.equal(last?.policies['default@controller']?.mode, 'save');
    t.match(last?.storages, { local: { path: '/one' } }, 'beside what the files said last');
    await pushed.remove(3, { kind: 'controller', name: 'c1' });
    t.same(Object.keys(followed.at(-1)?.policies ?? {}), []);
  },
);
