import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';

void t.test('what was freed below something that is in use goes back to the host', async (t) => {
  const program = `
    import { giveBackFreedMemory } from ${JSON.stringify(join(import.meta.dirname, 'freedMemory.ts'))};
    await giveBackFreedMemory();
    let freed = Array.from({ length: 64 * 1024 }, () => Buffer.allocUnsafeSlow(1024).fill(1));
    const inUse = Buffer.allocUnsafeSlow(1024);
    freed = undefined;
    gc();
    gc();
    const before = process.memoryUsage.rss();
    await giveBackFreedMemory();
    console.log((before - process.memoryUsage.rss()) / 1024 / 1024, inUse.length);`;
  const { stdout } = await execa(process.execPath, ['--expose-gc', '--input-type=module', '-e', program], {
    env: { MALLOC_ARENA_MAX: '1' },
  });
  t.ok(Number.parseFloat(stdout) > 16, `of 64 MiB ${stdout}`);
});
