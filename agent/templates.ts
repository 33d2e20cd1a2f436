import { isAbsolute, join, normalize } from 'node:path';
import { AgentError } from './errors.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { poolDirectoryOf } from './hypervisor/poolXml.ts';
import { templateUuid } from '../storage/template.ts';

/** An image that no machine runs, such as what the images of machines stand on. */
export interface TemplateRequest {
  /** Absolute path, or `POOL/VOLUME` of a storage pool. */
  readonly image: string;
}

/** A template as its backup knows it, in the place of a machine. */
export interface FoundTemplate {
  readonly machine: { readonly uuid: string; readonly name: string };
  /** Absolute path. */
  readonly image: string;
}

/** The name of a template that nobody has named: that of its file. */
export function templateNameOf(image: string): string {
  const name = image.split('/').at(-1) ?? image;
  return name.replace(/\.(?:qcow2|img|raw)$/, '') || name;
}

/**
 * Finds where a template's image is, and under which UUID its backups go.
 * @throws AgentError TEMPLATE_NAME_TAKEN, POOL_UNUSABLE; HypervisorError
 */
export async function findTemplate(
  hypervisor: Hypervisor,
  name: string,
  { image: wanted }: TemplateRequest,
): Promise<FoundTemplate> {
  const machine = (await hypervisor.machines()).find((candidate) => candidate.name === name);
  if (machine !== undefined) {
    throw new AgentError('TEMPLATE_NAME_TAKEN', `${name} is the name of a machine (${machine.uuid})`, {
      hint: 'give the template another one: --name NAME, or templates: in the configuration',
    });
  }
  const image = isAbsolute(wanted) ? normalize(wanted) : await poolVolume(hypervisor, wanted);
  const { hostName } = await hypervisor.hostInfo();
  return { machine: { name, uuid: templateUuid({ host: hostName, name, image }) }, image };
}

/** The file of a volume, `POOL/VOLUME`. */
async function poolVolume(hypervisor: Hypervisor, wanted: string): Promise<string> {
  const [, poolName = '', volume = ''] = /^([^/]+)\/([^/]+)$/.exec(wanted) ?? [];
  const pools = (await hypervisor.hostDefinitions()).filter(({ kind }) => kind === 'pool');
  const pool = pools.find((candidate) => candidate.name === poolName);
  const names = pools.map((candidate) => candidate.name).join(', ');
  if (pool === undefined) {
    throw new AgentError('POOL_UNUSABLE', `"${wanted}" is neither an absolute path nor a volume of a pool`, {
      hint: `POOL/VOLUME, as virsh vol-list POOL prints them; there is ${names || 'no pool'}`,
    });
  }
  const directory = poolDirectoryOf(pool.definition);
  if (directory !== undefined && volume !== '..' && volume !== '.') return normalize(join(directory, volume));
  throw new AgentError('POOL_UNUSABLE', `the volumes of pool ${poolName} are not files of a directory`, {
    hint: `virsh vol-path --pool ${poolName} ${volume}; files can be given by their paths`,
  });
}
