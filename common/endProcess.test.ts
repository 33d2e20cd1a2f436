import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';

void t.test('a process ends with its exit code, also while one of its calls hangs', async (t) => {
  const directory = t.testdir({});
  const fifo = join(directory, 'fifo');
  await execa('mkfifo', [fifo]);
  const program = (end: string): string => `
    import { open } from 'node:fs/promises';
    import { endProcess } from ${JSON.stringify(join(import.meta.dirname, 'endProcess.ts'))};
    // Nobody ever opens the other end: the thread of this call hangs.
    const call = open(${JSON.stringify(fifo)}, 'r');
    console.log('said');
    setTimeout(() => ${end}(6), 50);`;
  const run = (end: string) =>
    execa(process.execPath, ['--input-type=module', '-e', program(end)], { reject: false, timeout: 3_000 });
  t.match(await run('endProcess'), { exitCode: 6, stdout: 'said', stderr: '', timedOut: false });
  t.match(await run('process.exit'), { timedOut: true }, 'Node.js itself would wait for it');
});

void t.test('whoever waits for the end of the process is told of it, once', async () => {
  const program = `
    import { writeSync } from 'node:fs';
    import { endProcess } from ${JSON.stringify(join(import.meta.dirname, 'endProcess.ts'))};
    process.on('exit', (code) => writeSync(1, \`ended with \${code}\`));
    endProcess(3);`;
  t.match(await execa(process.execPath, ['--input-type=module', '-e', program], { reject: false }), {
    exitCode: 3,
    stdout: 'ended with 3',
  });
});

void t.test('what a process has said goes out before it ends, however slowly it is read', async (t) => {
  const program = `
    import { endProcess, outputGone } from ${JSON.stringify(join(import.meta.dirname, 'endProcess.ts'))};
    process.stdout.on('error', () => undefined);
    process.stdout.write('x'.repeat(1_000_000));
    await outputGone();
    endProcess(0);`;
  const node = [process.execPath, '--input-type=module', '-e', program];
  const read = (reader: string) =>
    execa('sh', ['-c', `"$@" | ${reader}`, 'sh', ...node], { reject: false, timeout: 10_000 });
  t.match(await read('(sleep 0.5; wc -c)'), { exitCode: 0, stdout: '1000000', timedOut: false });
  t.match(await read('head -c 3'), { exitCode: 0, stdout: 'xxx', timedOut: false }, 'a reader may go away');
});
