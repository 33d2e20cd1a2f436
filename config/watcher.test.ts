import { once, EventEmitter } from 'node:events';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { eventually } from '../test/lab/eventually.ts';
import { PushedFile } from './pushedFile.ts';
import { ConfigWatcher } from './watcher.ts';

const text = (path: string): string => `storages: { local: { kind: directory, path: ${path} } }\n`;

void t.test('a changed file is followed, and an invalid one is refused and the old one kept', async (t) => {
  const directory = t.testdir({ 'config.yaml': text('/one'), other: '' });
  const file = join(directory, 'config.yaml');
  const events = new EventEmitter();
  const signal = AbortSignal.timeout(20_000);
  await using watcher = await ConfigWatcher.start(file, {
    changed: () => events.emit('changed'),
    refused: (error) => events.emit('refused', error),
  });
  t.match(watcher.current.config.storages['local'], { path: '/one' });

  const refused = once(events, 'refused', { signal });
  await writeFile(file, 'storages: [');
  t.match(await refused, [{ code: 'CONFIG_INVALID' }]);
  t.match(watcher.current.config.storages['local'], { path: '/one' });

  const changed = once(events, 'changed', { signal });
  await writeFile(join(directory, 'new'), text('/two'));
  await rename(join(directory, 'new'), file);
  await changed;
  t.match(watcher.current.config.storages['local'], { path: '/two' });
});

void t.test('drop-ins are followed too', async (t) => {
  const directory = t.testdir({ '10.yaml': text('/one') });
  const events = new EventEmitter();
  const signal = AbortSignal.timeout(20_000);
  await using watcher = await ConfigWatcher.start(directory, {
    changed: () => events.emit('changed'),
    refused: (error) => events.emit('refused', error),
  });
  const changed = once(events, 'changed', { signal });
  await writeFile(join(directory, '20.yaml'), text('/two'));
  await changed;
  t.match(watcher.current.config.storages['local'], { path: '/two' });
});

void t.test('drop-ins beside a file are followed too, also the first one', async (t) => {
  const directory = t.testdir({ 'config.yaml': text('/one') });
  const events = new EventEmitter();
  const signal = AbortSignal.timeout(20_000);
  await using watcher = await ConfigWatcher.start(join(directory, 'config.yaml'), {
    changed: () => events.emit('changed'),
    refused: (error) => events.emit('refused', error),
  });
  let changed = once(events, 'changed', { signal });
  await mkdir(join(directory, 'config.d'));
  await writeFile(join(directory, 'config.d', '10.yaml'), text('/two'));
  await changed;
  t.match(watcher.current.config.storages['local'], { path: '/two' });
  changed = once(events, 'changed', { signal });
  await rm(join(directory, 'config.d', '10.yaml'));
  await changed;
  t.match(watcher.current.config.storages['local'], { path: '/one' });
});

void t.test('what is asked for is read at once, and answered', async (t) => {
  const directory = t.testdir({ 'config.yaml': text('/one') });
  const file = join(directory, 'config.yaml');
  const told: string[] = [];
  await using watcher = await ConfigWatcher.start(file, {
    changed: () => told.push('changed'),
    refused: () => told.push('refused'),
  });
  t.equal(await watcher.reload(), 'unchanged');
  await writeFile(file, 'storages: [');
  t.equal(await watcher.reload(), 'refused');
  await writeFile(file, text('/two'));
  t.equal(await watcher.reload(), 'changed');
  t.same([...new Set(told)], ['refused', 'changed']);
});

void t.test('a service does not start with an invalid configuration', async (t) => {
  const directory = t.testdir({ 'config.yaml': 'surprise: 1\n' });
  const listener = { changed: () => undefined, refused: () => undefined };
  await t.rejects(ConfigWatcher.start(join(directory, 'config.yaml'), listener), { code: 'CONFIG_INVALID' });
  await t.rejects(ConfigWatcher.start(join(directory, 'missing.yaml'), listener), { code: 'CONFIG_MISSING' });
});

/** A host whose files are followed, and to which policies can be pushed. */
async function pushedHost(t: Test) {
  const directory = t.testdir({ 'config.yaml': '', state: {} });
  const stateDir = join(directory, 'state');
  const file = join(directory, 'config.yaml');
  const write = (more: string): Promise<void> =>
    writeFile(file, `${text('/one')}agent: { stateDir: ${stateDir} }\n${more}`);
  await write('');
  const pushed = new PushedFile(stateDir);
  await pushed.makeDirectory();
  const push = (revision: number, mode: string): Promise<void> =>
    pushed.write({
      revision,
      document: JSON.stringify({ policies: { default: { mode } } }),
      setBy: 'controller:c1',
      setAt: '2026-11-22T10:00:00.000Z',
    });
  const refusals: unknown[] = [];
  const start = (): Promise<ConfigWatcher> =>
    ConfigWatcher.start(file, { changed: () => undefined, refused: (error) => refusals.push(error) });
  return { write, push, pushed, start, refusals };
}

function pushedMode({ current }: ConfigWatcher): string | undefined {
  return current.config.policies['default@controller']?.mode;
}

void t.test('what is pushed is followed as files are, and holds after a restart', async (t) => {
  const { push, pushed, start } = await pushedHost(t);
  {
    await using watcher = await start();
    t.equal(pushedMode(watcher), undefined);
    await push(1, 'disk');
    // Nobody calls: it is the file that is noticed.
    await eventually(() => pushedMode(watcher) === 'disk');
    await push(2, 'save');
    t.equal(await watcher.reload(), 'changed');
    t.equal(pushedMode(watcher), 'save');
  }
  await using again = await start();
  t.equal(pushedMode(again), 'save', 'also when nobody pushes any more');
  await pushed.remove();
  await eventually(() => pushedMode(again) === undefined);
});

void t.test('what is pushed counts also while files are wrong, and the other way round', async (t) => {
  const { write, push, pushed, start, refusals } = await pushedHost(t);
  await push(1, 'disk');
  await using watcher = await start();
  await write('policies: [');
  t.equal(await watcher.reload(), 'refused');
  await push(2, 'save');
  t.equal(await watcher.reload(), 'refused', 'the files are still wrong');
  t.equal(pushedMode(watcher), 'save');
  t.match(watcher.current.config.storages['local'], { path: '/one' });
  t.match(refusals[0], { code: 'CONFIG_INVALID' });

  await writeFile(pushed.path, 'damaged');
  await write('policies: { own: {} }\n');
  t.equal(await watcher.reload(), 'changed');
  t.ok(watcher.current.config.policies['own'], 'a change of the files holds');
  t.equal(pushedMode(watcher), 'save', 'what was read before holds');
  t.match(watcher.current.pushed.problems, [/it is damaged/]);
  await using again = await start();
  t.ok(again.current.config.policies['own'], 'a start goes by the files');
  t.match(again.current.pushed, { kept: null, problems: [/it is damaged/] });
});
