import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { Test } from 'tap';
import type { HypervisorFixture } from './hypervisorFixture.ts';
import { until } from './hypervisorFixture.ts';

const volumes = [{ target: 'vda' }];
const answerMs = 5_000;

/** What the port promises of the agent in a guest. */
export function guests(t: Test, fixture: HypervisorFixture): void {
  const { hypervisor } = fixture;
  const agentOf = async (uuid: string): Promise<string | undefined> =>
    DomainXml.parse(await hypervisor.definition(uuid, 'live')).guestAgent;

  void t.test('a guest is frozen and thawed, and a thaw of a thawed one does nothing', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes, running: true, guestAgent: true });
    t.equal(await agentOf(uuid), 'connected');
    await hypervisor.askGuest(uuid, answerMs);
    t.equal(await hypervisor.freezeGuest(uuid, answerMs), 1);
    await t.rejects(hypervisor.askGuest(uuid, answerMs), { code: 'OPERATION_FAILED' });
    t.equal(await hypervisor.thawGuest(uuid, answerMs), 1);
    t.equal(await hypervisor.thawGuest(uuid, answerMs), 0);
    await hypervisor.suspend(uuid);
    await t.rejects(hypervisor.freezeGuest(uuid, answerMs), { code: 'MACHINE_STATE_INVALID' });
    await hypervisor.powerOff(uuid);
    await t.rejects(hypervisor.thawGuest(uuid, answerMs), { code: 'MACHINE_STATE_INVALID' });
  });

  void t.test('a machine without a channel for an agent cannot be frozen', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes, running: true });
    t.equal(await agentOf(uuid), undefined);
    await t.rejects(hypervisor.askGuest(uuid, answerMs), { code: 'OPERATION_UNSUPPORTED' });
    await t.rejects(hypervisor.freezeGuest(uuid, answerMs), { code: 'OPERATION_UNSUPPORTED' });
    await hypervisor.powerOff(uuid);
  });

  const { restartHypervisor } = fixture.externally ?? {};
  if (restartHypervisor === undefined) return;
  void t.test('what was frozen before a restart of the hypervisor is thawed after it', async (t) => {
    const { uuid } = await fixture.createMachine({ volumes, running: true, guestAgent: true });
    await hypervisor.freezeGuest(uuid, answerMs);
    await restartHypervisor();
    // The next libvirtd connects to the agent after it has begun to answer calls.
    let thawed = 0;
    await until(async () => {
      thawed = await hypervisor.thawGuest(uuid, answerMs).catch(() => -1);
      return thawed >= 0;
    });
    t.equal(thawed, 1);
    await hypervisor.powerOff(uuid);
  });
}
