import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { newId } from '../common/ids.ts';
import { Journal } from '../agent/jobs/journal.ts';
import { thisOwner } from '../agent/jobs/owner.ts';

void t.test('a long result reaches a slow reader whole', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-output-'));
  t.after(() => rm(directory, { recursive: true }));
  const stateDir = join(directory, 'state');
  await mkdir(stateDir);
  const config = join(directory, 'config.yaml');
  await writeFile(config, `agent: { stateDir: ${stateDir} }\n`);
  const jobs = 400;
  {
    using journal = new Journal(join(stateDir, 'journal.sqlite'));
    for (let index = 0; index < jobs; index += 1) {
      const id = newId();
      const machine = { machineUuid: id, machineName: `vm-${index}` };
      const job = { id, kind: 'backup', state: 'initialized', record: {}, owner: thisOwner() } as const;
      journal.create({ ...job, ...machine });
    }
  }
  const node = [process.execPath, join(import.meta.dirname, 'main.ts'), '--config', config];
  const command = '"$@" jobs --all --json | (sleep 1; cat)';
  const { stdout } = await execa('sh', ['-c', command, 'sh', ...node], { timeout: 30_000 });
  t.ok(stdout.length > 100_000, 'more than a pipe takes at once');
  t.match(JSON.parse(stdout), { jobs: { length: jobs } });
});
