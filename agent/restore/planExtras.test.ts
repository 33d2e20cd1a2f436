import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import t, { type Test } from 'tap';

import { removeSharedImages, Site } from '../../test/sim/site.ts';
import type { RestoreRequest } from './request.ts';

t.teardown(removeSharedImages);

/** A machine that boots from a kernel of the host, backed up. */
async function backedUp(test: Test): Promise<{ readonly site: Site; readonly kernel: string }> {
  const site = await Site.create({ targets: ['vda'] });
  test.teardown(() => site[Symbol.asyncDispose]());
  await mkdir(join(site.directory, 'kernels'));
  const kernel = join(site.directory, 'kernels', 'vmlinuz');
  await writeFile(kernel, 'a kernel');
  const machine = site.world.machine('m');
  if (machine.persistent === undefined || machine.instance === undefined) throw new Error('it does not run');
  const change = (xml: string): string => xml.replace('</os>', `<kernel>${kernel}</kernel></os>`);
  machine.persistent = change(machine.persistent);
  machine.instance.definition = change(machine.instance.definition);
  const { agent } = site.openAgent();
  test.match(await agent.run(await agent.createBackup({ machine: 'm', mode: 'disk' })), {
    state: 'finished',
  });
  return { site, kernel };
}

async function restore(test: Test, site: Site, request: RestoreRequest): Promise<readonly string[]> {
  const { agent } = site.openAgent();
  const plan = await agent.planRestore({ backup: 'm@latest', ...request });
  test.match(await agent.run(agent.createRestore(plan)), { state: 'finished' });
  return plan.conflicts.map(({ message }) => message);
}

void t.test('a kernel that is gone comes back with its machine, for everybody to read', async (t) => {
  const { site, kernel } = await backedUp(t);
  await rm(join(kernel, '..'), { recursive: true });
  t.notOk((await restore(t, site, { inPlace: true })).some((message) => message.includes(kernel)));
  t.equal(await readFile(kernel, 'utf8'), 'a kernel');
  t.equal((await stat(kernel)).mode & 0o777, 0o644);
  t.same(await readdir(join(kernel, '..')), ['vmlinuz'], 'no work file is left');
});

void t.test('a kernel that is there stays, and the plan says that it is another one', async (t) => {
  const { site, kernel } = await backedUp(t);
  t.notOk((await restore(t, site, { inPlace: true })).some((message) => message.includes(kernel)));
  await writeFile(kernel, 'a newer kernel');
  const conflicts = await restore(t, site, { inPlace: true });
  t.ok(
    conflicts.some((message) => message.startsWith(`the kernel ${kernel} is another one`)),
    conflicts.join(),
  );
  t.equal(await readFile(kernel, 'utf8'), 'a newer kernel');
});

void t.test('a restore of files has everything that was stored', async (t) => {
  const { site, kernel } = await backedUp(t);
  await restore(t, site, { to: site.filesDirectory });
  const [name = ''] = (await readdir(site.filesDirectory)).filter((file) => file.includes('.kernel-'));
  t.equal(await readFile(join(site.filesDirectory, name), 'utf8'), 'a kernel');
  t.equal(await readFile(kernel, 'utf8'), 'a kernel');
});
