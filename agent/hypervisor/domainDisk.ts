import type { Element } from '@xmldom/xmldom';

import { attribute, child, children, removeElement, text } from './domainDom.ts';
import { DomainXmlError } from './domainXmlError.ts';

/** What a volume's data is read from, by libvirt's `<disk type=…>`; `none` for an empty drive. */
export type VolumeSourceKind =
  | 'file'
  | 'block'
  | 'network'
  | 'volume'
  | 'dir'
  | 'vhostuser'
  | 'nvme'
  | 'none';

const sourceKinds: readonly string[] = [
  'file',
  'block',
  'network',
  'volume',
  'dir',
  'vhostuser',
  'nvme',
] satisfies readonly VolumeSourceKind[];

/** A disk's `error_policy` and `rerror_policy`; `undefined` is QEMU's own choice. */
export interface ErrorPolicies {
  readonly write?: string | undefined;
  readonly read?: string | undefined;
}

/** One image below a volume's top image. */
export interface BackingImage {
  /** `undefined` when it is not a file, device or directory of this host. */
  readonly path: string | undefined;
  readonly format: string | undefined;
  /** Of an NBD export over a unix socket: its address as QEMU writes it into image headers. */
  readonly nbdUrl?: string | undefined;
}

/** One `<disk>` of a definition. */
export interface DomainVolume {
  readonly target: string;
  readonly device: 'disk' | 'cdrom' | 'floppy' | 'lun';
  readonly bus: string | undefined;
  readonly sourceKind: VolumeSourceKind;
  /** File, device or directory; `undefined` for the other kinds. */
  readonly path: string | undefined;
  /** Of a volume of a storage pool. */
  readonly pool: { readonly name: string; readonly volume: string } | undefined;
  /** Of a network volume: its address, for people. */
  readonly address: string | undefined;
  /** `<driver type=…>`: what QEMU opens it as. */
  readonly format: string | undefined;
  readonly readOnly: boolean;
  readonly shareable: boolean;
  readonly transient: boolean;
  readonly encrypted: boolean;
  readonly serial: string | undefined;
  readonly cache: string | undefined;
  readonly errorPolicies: ErrorPolicies;
  /**
   * Images below the top one, nearest first. `[]`: the definition says that the chain ends here (libvirt
   * then tells QEMU so, whatever the image's header says). `undefined`: it says nothing, and libvirt reads
   * the chain from the headers.
   */
  readonly backingChain: readonly BackingImage[] | undefined;
  /** libvirt's number of the top image, used in `vda[1]`; only in a live definition. */
  readonly index: number | undefined;
}

/** Reads a `<disk>` element. */
export function readVolume(disk: Element): DomainVolume {
  const source = child(disk, 'source');
  const kind = sourceKindOf(disk, source);
  const device = attribute(disk, 'device') ?? 'disk';
  if (device !== 'disk' && device !== 'cdrom' && device !== 'floppy' && device !== 'lun') {
    throw new DomainXmlError(
      'XML_INVALID',
      `the definition has a disk of the unknown device type "${device}"`,
    );
  }
  const index = attribute(source, 'index');
  return {
    target: volumeTarget(disk),
    device,
    bus: attribute(child(disk, 'target'), 'bus'),
    sourceKind: kind,
    path: sourcePath(source),
    pool: kind === 'volume' ? readPool(source) : undefined,
    address: kind === 'network' ? readAddress(source) : undefined,
    format: attribute(child(disk, 'driver'), 'type'),
    readOnly: child(disk, 'readonly') !== undefined,
    shareable: child(disk, 'shareable') !== undefined,
    transient: child(disk, 'transient') !== undefined,
    encrypted: child(disk, 'encryption') !== undefined || child(source, 'encryption') !== undefined,
    serial: text(child(disk, 'serial')),
    cache: attribute(child(disk, 'driver'), 'cache'),
    errorPolicies: {
      write: attribute(child(disk, 'driver'), 'error_policy'),
      read: attribute(child(disk, 'driver'), 'rerror_policy'),
    },
    backingChain: readBackingChain(disk),
    index: index === undefined ? undefined : Number(index),
  };
}

/** `<target dev=…>` of a `<disk>`; libvirt never writes one without. */
export function volumeTarget(disk: Element): string {
  const target = attribute(child(disk, 'target'), 'dev');
  if (target === undefined)
    throw new DomainXmlError('XML_INVALID', 'the definition has a disk without a target');
  return target;
}

/**
 * Makes a file the source of a `<disk>`. Of another kind of source only the encryption is left: addresses, hosts and
 * authentication belong to what it was.
 * @throws DomainXmlError XML_VOLUME_NOT_A_FILE for what no file can stand in for
 */
export function setFileSource(disk: Element, path: string): void {
  const source = child(disk, 'source');
  const { sourceKind, target } = readVolume(disk);
  const replaceable: readonly VolumeSourceKind[] = ['file', 'block', 'volume', 'network'];
  if (source === undefined || !replaceable.includes(sourceKind))
    throw new DomainXmlError('XML_VOLUME_NOT_A_FILE', `volume ${target} is not a file`);
  if (sourceKind !== 'file') {
    disk.setAttribute('type', 'file');
    for (const { name } of Array.from(source.attributes)) source.removeAttribute(name);
    for (const element of children(source)) if (element.localName !== 'encryption') removeElement(element);
    for (const element of children(disk, 'auth')) removeElement(element);
  }
  source.setAttribute('file', path);
}

function sourceKindOf(disk: Element, source: Element | undefined): VolumeSourceKind {
  // An empty drive has <disk type='file'> and either no <source> or one with nothing but a startupPolicy.
  const type = attribute(disk, 'type') ?? 'file';
  if (!isSourceKind(type)) {
    throw new DomainXmlError('XML_INVALID', `the definition has a disk of the unknown type "${type}"`);
  }
  if (source === undefined) return 'none';
  if ((type === 'file' || type === 'block' || type === 'dir') && sourcePath(source) === undefined)
    return 'none';
  return type;
}

function isSourceKind(type: string): type is VolumeSourceKind {
  return sourceKinds.includes(type);
}

function sourcePath(source: Element | undefined): string | undefined {
  return attribute(source, 'file') ?? attribute(source, 'dev') ?? attribute(source, 'dir');
}

function readPool(source: Element | undefined): { readonly name: string; readonly volume: string } {
  const name = attribute(source, 'pool');
  const volume = attribute(source, 'volume');
  if (name === undefined || volume === undefined)
    throw new DomainXmlError('XML_INVALID', 'the definition has a pool volume without its pool or name');
  return { name, volume };
}

/** Protocol, first host and name; secrets are in none of them. */
function readAddress(source: Element | undefined): string {
  const host = child(source, 'host');
  const port = attribute(host, 'port');
  const server = attribute(host, 'socket') ?? attribute(host, 'name') ?? '';
  const protocol = attribute(source, 'protocol') ?? 'unknown';
  return `${protocol}://${server}${port === undefined ? '' : `:${port}`}/${attribute(source, 'name') ?? ''}`;
}

function readBackingChain(disk: Element): readonly BackingImage[] | undefined {
  let store = child(disk, 'backingStore');
  if (store === undefined) return undefined;
  const chain: BackingImage[] = [];
  while (store !== undefined) {
    // An empty <backingStore/> marks the end of the chain.
    const source = child(store, 'source');
    const format = attribute(child(store, 'format'), 'type');
    if (source === undefined && format === undefined) break;
    chain.push({ path: sourcePath(source), format, nbdUrl: nbdUrlOf(source) });
    store = child(store, 'backingStore');
  }
  return chain;
}

/** Address of an NBD export over a unix socket, as image headers have it. */
export function nbdUrl(exportName: string, socketPath: string): string {
  return `nbd+unix:///${exportName}?socket=${socketPath}`;
}

function nbdUrlOf(source: Element | undefined): string | undefined {
  if (attribute(source, 'protocol') !== 'nbd') return undefined;
  const socket = attribute(child(source, 'host'), 'socket');
  return socket === undefined ? undefined : nbdUrl(attribute(source, 'name') ?? '', socket);
}
