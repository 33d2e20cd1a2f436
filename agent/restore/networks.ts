import { exists } from '../../common/files.ts';
import type { DomainInterface, DomainXml } from '../hypervisor/domainXml.ts';
import type { NetworkPlace } from '../hypervisor/domainNetwork.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { RestoreError } from './errors.ts';
import type { RestorePlan } from './plan.ts';

/** Where Linux lists the interfaces of the host. */
const hostInterfaces = '/sys/class/net';

/** A place that network cards of the machine were connected to, and where they are going to be. */
export type NetworkMapping = RestorePlan['networks'][number];

/**
 * Decides where the network cards of a restored machine are connected: where they were, unless the request says
 * otherwise.
 * @param wanted places by the names of the old ones: a network of libvirt, else a bridge, or `none`
 * @throws RestoreError NETWORK_MISSING for a place that this host does not have, RESTORE_TARGET_UNCLEAR
 */
export async function planNetworks(
  hypervisor: Hypervisor,
  definition: DomainXml,
  wanted: Readonly<Record<string, string>>,
  starts: boolean,
): Promise<{ readonly networks: NetworkMapping[]; readonly missing: readonly string[] }> {
  const cards = definition.interfaces.filter((card) => card.source !== undefined && needsPlace(card));
  const sources = new Set(cards.map(({ source = '' }) => source));
  const networks = new Set<string>();
  if (cards.length > 0 || Object.keys(wanted).length > 0)
    for (const { kind, name } of await hypervisor.hostDefinitions())
      if (kind === 'network') networks.add(name);
  const mappings: NetworkMapping[] = [];
  for (const [from, name] of Object.entries(wanted)) {
    if (!sources.has(from)) {
      throw new RestoreError(
        'RESTORE_TARGET_UNCLEAR',
        `no network card of the machine is connected to ${from}`,
        {
          hint: sources.size === 0 ? 'leave --network out' : `it has cards on: ${[...sources].join(', ')}`,
        },
      );
    }
    mappings.push({ from, to: await placeOf(name, networks) });
  }
  const missing: string[] = [];
  for (const card of cards) {
    const { source = '' } = card;
    if (wanted[source] === undefined && !missing.includes(source) && !(await isThere(card, source, networks)))
      missing.push(source);
  }
  if (missing.length > 0 && starts) throw isMissing(missing, networks);
  return { networks: mappings, missing };
}

/** Cards that would keep the machine from starting where their place is not there. */
function needsPlace({ type }: DomainInterface): boolean {
  return type === 'network' || type === 'bridge' || type === 'direct';
}

async function isThere(
  { type }: DomainInterface,
  name: string,
  networks: ReadonlySet<string>,
): Promise<boolean> {
  return type === 'network' ? networks.has(name) : isHostInterface(name);
}

function isHostInterface(name: string): Promise<boolean> {
  return name.includes('/') ? Promise.resolve(false) : exists(`${hostInterfaces}/${name}`);
}

async function placeOf(name: string, networks: ReadonlySet<string>): Promise<NetworkPlace> {
  if (name === 'none') return { kind: 'none' };
  if (networks.has(name)) return { kind: 'network', name };
  if (await exists(`${hostInterfaces}/${name}/bridge`)) return { kind: 'bridge', name };
  throw isMissing([name], networks);
}

function isMissing(names: readonly string[], networks: ReadonlySet<string>): RestoreError {
  const known = networks.size === 0 ? 'libvirt has no network' : `libvirt has ${[...networks].join(', ')}`;
  return new RestoreError(
    'NETWORK_MISSING',
    `this host has no network or bridge ${names.join(', ')}, and the machine would not start (${known})`,
    { hint: `--network ${names[0]}=NAME connects its cards there, --network ${names[0]}=none to nothing` },
  );
}
