import { link, mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Test } from 'tap';

import { DomainXml } from '../../agent/hypervisor/domainXml.ts';
import type { HypervisorEvent } from '../../agent/hypervisor/hypervisor.ts';
import { createOverlay } from '../../common/qemuImage.ts';
import type { SimulatedHypervisor } from './simulatedHypervisor.ts';
import { SimulatedWorld } from './world.ts';

/** One machine on a simulated host with an agent that listens: where the simulator's own tests begin. */
export interface Stage {
  readonly world: SimulatedWorld;
  readonly agent: SimulatedHypervisor;
  readonly uuid: string;
  readonly image: string;
  readonly frozen: string;
  readonly state: string;
  readonly events: string[];
}

function describe(event: HypervisorEvent): string {
  if (event.kind === 'lifecycle') return `${event.event} ${event.detail}`;
  if (event.kind === 'block-job') return `${event.kind} ${event.target} ${event.status}`;
  return event.kind;
}

/** A running machine whose guest has written 1 and 2. */
export async function stage(test: Test): Promise<Stage> {
  const directory = await mkdtemp(join(tmpdir(), 'stillpoint-world-'));
  const world = await SimulatedWorld.create(directory);
  test.teardown(async () => {
    await world[Symbol.asyncDispose]();
    await rm(directory, { recursive: true });
  });
  const image = join(directory, 'm-vda.qcow2');
  const uuid = await world.addMachine({ name: 'm', volumes: [{ target: 'vda', path: image }] });
  await world.startMachine('m');
  await world.write('m', 'vda', 1);
  await world.write('m', 'vda', 2);
  const agent = world.connect();
  const events: string[] = [];
  await agent.subscribe((event) => events.push(describe(event)));
  return { world, agent, uuid, image, frozen: `${image}.frozen`, state: join(directory, 'state'), events };
}

export async function correctedDefinition(agent: SimulatedHypervisor, uuid: string): Promise<string> {
  const xml = DomainXml.parse(await agent.definition(uuid, 'migratable'));
  xml.removeBackingStores();
  return xml.toString();
}

/** The product's classic flow, without its care. */
export async function saveAndSwap(
  { agent, uuid, image, frozen, state }: Stage,
  definition: string,
): Promise<void> {
  await agent.save(uuid, { file: state, definition });
  await link(image, frozen);
  await createOverlay(`${image}.new`, { path: frozen, format: 'qcow2' }, 1024 * 1024);
  await rename(`${image}.new`, image);
}

export async function backUp(on: Stage): Promise<void> {
  await saveAndSwap(on, await correctedDefinition(on.agent, on.uuid));
  await on.agent.restoreState({ file: on.state, paused: true });
  await on.agent.resume(on.uuid);
}

/** libvirt's own number is part of what the simulator promises. */
export async function refusedWith(
  test: Test,
  pending: Promise<unknown>,
  code: string,
  number: number,
): Promise<void> {
  const error: unknown = await pending.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  test.match(error, { code, libvirt: { code: number } });
}

export async function untilEvent(on: Stage, wanted: string): Promise<void> {
  const deadlineMs = Date.now() + 10_000;
  while (!on.events.includes(wanted)) {
    if (Date.now() > deadlineMs) throw new Error(`no ${wanted} in ${on.events.join(', ')}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
