import { attribute, child, parseDocument, serializeNode } from './domainDom.ts';

/** A processor that a machine needs, as `virConnectCompareHypervisorCPU` is asked for it. */
export interface ProcessorRequirement {
  readonly arch: string;
  /** `kvm`, `qemu`, … */
  readonly virtType: string;
  /** A `<cpu>` element. */
  readonly cpu: string;
}

/**
 * The processor that a definition names, or the one that libvirt's cookie in a save image does: the guest's memory
 * needs that one, whatever the definition says. `null` where none is named.
 * @throws DomainXmlError XML_INVALID
 */
export function requiredProcessor(definition: string, cookie: string | null): ProcessorRequirement | null {
  const root = parseDocument(definition, 'domain').documentElement ?? undefined;
  const seen = cookie === null ? undefined : (parseDocument(cookie, 'cookie').documentElement ?? undefined);
  const cpu = child(seen, 'cpu') ?? child(root, 'cpu');
  const arch = attribute(child(root, 'os', 'type'), 'arch');
  const virtType = attribute(root, 'type');
  if (cpu === undefined || arch === undefined || virtType === undefined) return null;
  return { arch, virtType, cpu: serializeNode(cpu) };
}
