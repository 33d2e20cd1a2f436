import { once, EventEmitter } from 'node:events';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
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
