import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import t from 'tap';

import { hypervisorConformance } from '../conformance/hypervisor.ts';
import type { HypervisorFixture } from '../conformance/hypervisorFixture.ts';
import { SimulatedWorld } from './world.ts';

async function makeFixture(): Promise<HypervisorFixture> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-conformance-'));
  const world = await SimulatedWorld.create(directory);
  let count = 0;
  return {
    hypervisor: world.connect(),
    stateDir: directory,
    createMachine: async ({ volumes, running, guestAgent = false }) => {
      count += 1;
      const name = `machine-${count}`;
      const imagePath = (target: string): string => join(directory, `${name}-${target}.qcow2`);
      const templates = volumes.map(({ target, backing }) => ({ target, path: imagePath(target), backing }));
      const uuid = await world.addMachine({ name, volumes: templates, guestAgent });
      await world.startMachine(uuid);
      for (const { target } of volumes) await world.write(uuid, target, 1);
      if (!running) await world.shutDownGuest(uuid);
      return { uuid, name, imagePath };
    },
    holdBlockJobs: () => {
      const gates = [world.hold('pull:half'), world.hold('commit:half')];
      return {
        [Symbol.dispose]: () => {
          for (const gate of gates) gate.release();
        },
      };
    },
    externally: {
      restartHypervisor: () => world.restartLibvirtd(),
      killQemu: (name) => world.killQemu(name),
    },
    [Symbol.asyncDispose]: async () => {
      await world[Symbol.asyncDispose]();
      await rm(directory, { recursive: true });
    },
  };
}

void t.test('the simulator keeps the promises of the port', (t) => hypervisorConformance(t, makeFixture));
