import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { StorageBandwidths } from '../agent/storageBandwidths.ts';
import { loadConfig } from '../config/config.ts';
import { followLimits } from './followLimits.ts';

const vault = (bandwidth: string): string =>
  `storages:\n  vault: { kind: repository, url: "file:///v", keyFile: /k, bandwidthBytesPerSecond: ${bandwidth} }\n`;

void t.test(
  'a command that runs follows the limits of its configuration, unless they are wrong',
  async (t) => {
    const path = join(t.testdir(), 'config.yaml');
    await writeFile(path, vault('0'));
    const loaded = await loadConfig(path);
    const bandwidths = new StorageBandwidths(loaded.config);
    const said: string[] = [];
    let heard = Promise.withResolvers<void>();
    const hear = (text: string): void => {
      said.push(text);
      heard.resolve();
    };
    const followed = { bandwidths, agent: { followLimits: () => [] } };
    await using _limits = await followLimits({ remark: hear, warning: hear }, loaded, path, followed);
    await writeFile(path, vault('1000000'));
    await heard.promise;
    t.equal(bandwidths.of('vault').bytesPerSecond, 1_000_000);
    heard = Promise.withResolvers<void>();
    await writeFile(path, vault('fast'));
    await heard.promise;
    t.equal(bandwidths.of('vault').bytesPerSecond, 1_000_000);
    t.match(said, [/storage vault has another bandwidth/, /not in force: .*expected a whole number/s]);
  },
);

void t.test('a configuration that cannot be followed ends no command', async (t) => {
  const path = join(t.testdir(), 'config.yaml');
  await writeFile(path, vault('1000000'));
  const loaded = await loadConfig(path);
  const bandwidths = new StorageBandwidths(loaded.config);
  const said: string[] = [];
  const terminal = { remark: (): void => undefined, warning: (text: string): void => void said.push(text) };
  const followed = { bandwidths, agent: { followLimits: () => [] } };
  await using _limits = await followLimits(terminal, loaded, `${path}.gone`, followed);
  t.match(said, [/limits stay as they are/]);
});
