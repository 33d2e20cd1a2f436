import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { errorRecord } from '../../common/errors.ts';
import { version } from '../../common/version.ts';
import {
  type GetHostRequest,
  type GetHostResponse,
  type Host,
  type ListMachinesRequest,
  type ListMachinesResponse,
  Machine,
} from '../../proto/generated/stillpoint/v1/agent.ts';
import type { MachineSummary } from '../hypervisor/hypervisor.ts';
import type { ApiContext } from './context.ts';
import { errorDetail } from './grpcErrors.ts';
import { wantsHypervisor } from './enums.ts';
import { machineMessage } from './machineMessage.ts';
import { Pages } from './page.ts';

/** Raised by each release that adds to the API. */
export const apiLevel = 1;

const machinesDefault = 1000;

/** Never fails because libvirt is away: that is a part of the answer. @throws ApiError REQUEST_INVALID */
export async function getHost(
  { agent, startedAtMs }: ApiContext,
  { view }: GetHostRequest,
): Promise<GetHostResponse> {
  const { config, configPath, storages } = agent.parts;
  const host: Host = {
    name: hostname(),
    agentVersion: version,
    apiLevel,
    startedAt: new Date(startedAtMs),
    maxParallelMachines: config.agent.maxParallelMachines,
    storages: [...storages.keys()],
    libvirtUri: config.agent.libvirtUri,
    libvirtVersion: '',
    qemuVersion: '',
    libvirtError: undefined,
    configPath: resolve(configPath),
  };
  if (!wantsHypervisor(view)) return { host };
  try {
    const { hostName: name, libvirtVersion, qemuVersion } = await agent.parts.hypervisor.hostInfo();
    return { host: { ...host, name, libvirtVersion, qemuVersion } };
  } catch (error) {
    return { host: { ...host, libvirtError: errorDetail(errorRecord(error)) } };
  }
}

/** @throws HypervisorError; ConfigError NO_STORAGE; ApiError REQUEST_INVALID */
export async function listMachines(
  { agent }: ApiContext,
  request: ListMachinesRequest,
): Promise<ListMachinesResponse> {
  const { hypervisor, journal } = agent.parts;
  const pages = new Pages<MachineSummary>(request, { of: ['machines'], keyOf, defaultSize: machinesDefault });
  const machines = await hypervisor.machines();
  const sorted = machines.toSorted((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
  const page = pages.of(sorted);
  const told = page.items.map((machine) =>
    machineMessage(machine, agent.parts, journal.holder(machine.uuid)),
  );
  const { messages, nextPageToken } = pages.fitting(page, told, Machine);
  return { machines: messages, nextPageToken };
}

function keyOf({ name, uuid }: { readonly name: string; readonly uuid: string }): string {
  return `${name}\n${uuid}`;
}
