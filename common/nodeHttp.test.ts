import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';

const repository = join(import.meta.dirname, '..');

void t.test('whoever speaks HTTP does not load what Node has for browsers', async (t) => {
  const modules = ['agent/observe/webhook.ts', 'agent/observe/metricsServer.ts'].map((file) =>
    JSON.stringify(join(repository, file)),
  );
  const program = `
    await Promise.all([${modules.join(', ')}].map((file) => import(file)));
    const loaded = (name) => process.moduleLoadList.includes('NativeModule ' + name);
    console.log(JSON.stringify({ https: loaded('https'), undici: loaded('internal/deps/undici/undici') }));
  `;
  // Without the options of this process, which is run by tap.
  const { stdout } = await execa(process.execPath, ['--input-type=module', '--eval', program], {
    env: { NODE_OPTIONS: '' },
  });
  t.same(JSON.parse(stdout), { https: true, undici: false });
});
