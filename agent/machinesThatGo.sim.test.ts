import { join } from 'node:path';
import t from 'tap';
import { newId } from '../common/ids.ts';
import { createImage } from '../test/sim/images.ts';
import { removeSharedImages, Site } from '../test/sim/site.ts';
import { Agent } from './agent.ts';
import { gatherHost } from './hostBackup.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';

/* A machine that libvirt has listed, and that has gone when it is asked about, as one does that a verification ends. */

t.teardown(removeSharedImages);

/** An agent whose libvirt lists a machine more than there is. */
function withGoneMachine({ parts }: Agent): Agent {
  const libvirt = parts.hypervisor;
  const machines: Hypervisor['machines'] = async () =>
    (await libvirt.machines()).flatMap((machine) => [{ ...machine, uuid: newId(), name: 'gone' }, machine]);
  const hypervisor = new Proxy(libvirt, {
    get: (target, key) => (key === 'machines' ? machines : Reflect.get(target, key)),
  });
  return new Agent({ ...parts, hypervisor });
}

void t.test('a machine that goes meanwhile keeps nobody from looking through the others', async (t) => {
  await using site = await Site.create({ targets: ['vda'] });
  const { agent: own } = site.openAgent();
  const job = await own.run(await own.createBackup({ machine: 'm', mode: 'disk' }));
  t.equal(job.state, 'finished');
  const agent = withGoneMachine(own);
  await t.test('a restore is planned', async (t) => {
    const plan = await agent.planRestore({ backup: 'm@latest', inPlace: true });
    t.same(
      plan.conflicts.map(({ kind }) => kind),
      ['machine', 'definition', 'path'],
    );
    t.ok(await agent.planRestore({ backup: 'm@latest', as: 'n' }));
  });
  await t.test('work that was left behind is found', async (t) => {
    t.same(await agent.workDirectories(), []);
  });
  await t.test('a template is backed up', async (t) => {
    const image = join(site.directory, 'images', 'base.qcow2');
    await createImage(image, { format: 'qcow2', sizeBytes: 1024 * 1024 });
    const row = await agent.run(await agent.createBackup({ machine: 'base', template: { image } }));
    t.match(row, { state: 'finished', error: null });
  });
  await t.test('what the host has for machines is kept', async (t) => {
    const { manifest } = await gatherHost(agent.parts.hypervisor, agent.parts.config);
    t.same(
      manifest.items.filter(({ kind }) => kind === 'machine').map(({ name }) => name),
      ['m'],
    );
  });
});
