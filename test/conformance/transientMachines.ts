import { randomUUID } from 'node:crypto';

import type { Test } from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import { exists } from '../../common/files.ts';
import { freshState, type HypervisorFixture } from './hypervisorFixture.ts';

/** Machines that nobody has defined, and pictures of their screens. */
export function transientMachines(t: Test, fixture: HypervisorFixture): void {
  const { hypervisor } = fixture;

  void t.test('a transient machine runs, and is forgotten when it stops', async (t) => {
    const machine = await fixture.createMachine({ volumes: [{ target: 'vda' }], running: false });
    const xml = DomainXml.parse(await hypervisor.definition(machine.uuid, 'persistent'));
    const identity = { name: `${machine.name}-transient`, uuid: randomUUID() };
    xml.prepareForNewMachine({
      ...identity,
      macs: xml.interfaces.map(({ mac }) => mac ?? '52:54:00:00:00:01'),
    });
    await hypervisor.startTransient(xml.toString());
    t.match(await hypervisor.machine(identity.uuid), {
      name: identity.name,
      persistent: false,
      status: { state: 'running' },
    });
    await t.rejects(hypervisor.startTransient(xml.toString()), { name: 'HypervisorError' });
    const picture = freshState(fixture);
    await t.rejects(hypervisor.screenshot(identity.uuid, picture), { name: 'HypervisorError' });
    t.equal(await exists(picture), false, 'without a screen nothing is left');
    await hypervisor.powerOff(identity.uuid);
    await t.rejects(hypervisor.machine(identity.uuid), { code: 'MACHINE_NOT_FOUND' });
  });
}
