import type { Document, Element } from '@xmldom/xmldom';

import type { HostDevice } from './domainDevices.ts';
import { readHostDevices } from './domainDevices.ts';
import type { DomainVolume, ErrorPolicies } from './domainDisk.ts';
import { readVolume, setFileSource, volumeTarget } from './domainDisk.ts';
import {
  appendElement,
  attribute,
  child,
  children,
  parseDocument,
  removeElement,
  serializeNode,
  text,
} from './domainDom.ts';
import { type BootFile, readBootFiles } from './domainBoot.ts';
import { copySecrets, removeInstanceState, removeSecrets } from './domainIdentity.ts';
import { isolate } from './domainIsolation.ts';
import { connectInterface, type NetworkPlace } from './domainNetwork.ts';
import { DomainXmlError } from './domainXmlError.ts';

export type { HostDevice, HostDeviceKind } from './domainDevices.ts';
export type { BackingImage, DomainVolume, VolumeSourceKind } from './domainDisk.ts';
export { DomainXmlError } from './domainXmlError.ts';
export type { DomainXmlErrorCode } from './domainXmlError.ts';

/** One `<interface>` of a definition. */
export interface DomainInterface {
  readonly mac: string | undefined;
  /** `network`, `bridge`, `user`, `direct`, … */
  readonly type: string;
  /** Network, bridge or device that it is connected to. */
  readonly source: string | undefined;
  readonly model: string | undefined;
  /** Tap device on the host, such as `vnet0`; mostly only in a live definition. */
  readonly target: string | undefined;
  readonly linkState: 'up' | 'down';
}

/** What makes a restored machine another machine than the one it was taken from. */
export interface NewMachineIdentity {
  readonly name: string;
  readonly uuid: string;
  /** One for each interface, in the order of `interfaces`. */
  readonly macs: readonly string[];
}

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const guestAgentChannel = 'org.qemu.guest_agent.0';
const macPattern = /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/i;

/** Bytes of libvirt's scaled integers (`virScaleInteger`): `KB` is 1000, `K` and `KiB` are 1024. */
const unitPrefixes = ['', 'k', 'm', 'g', 't', 'p', 'e'];

/**
 * A libvirt domain definition as a typed model over its DOM. Reading gives plain data; a mutator changes
 * only what its name says, and everything else (metadata, foreign namespaces, comments, unknown elements,
 * order) is written as it was read.
 */
export class DomainXml {
  readonly #document: Document;

  private constructor(document: Document) {
    this.#document = document;
  }

  /**
   * @throws DomainXmlError XML_INVALID when it is not one well-formed `<domain>` within the bounds of
   * `domainDom.ts`, or has a document type.
   */
  static parse(xml: string): DomainXml {
    return new DomainXml(parseDocument(xml, 'domain'));
  }

  toString(): string {
    return serializeNode(this.#document);
  }

  get name(): string {
    return required(text(child(this.#root, 'name')), 'name');
  }

  /** libvirt's number of the machine's present run; only in the definition of a machine that is active. */
  get runId(): string | undefined {
    return attribute(this.#root, 'id');
  }

  /** In lower case, as libvirt prints it. */
  get uuid(): string {
    return required(text(child(this.#root, 'uuid')), 'uuid').toLowerCase();
  }

  /** `kvm`, `qemu`, … */
  get type(): string {
    return required(attribute(this.#root, 'type'), 'type attribute');
  }

  /** Memory that the machine can have at most without hot-plugging more: an upper bound of its state. */
  get memoryBytes(): number {
    const sizes = ['memory', 'currentMemory'].flatMap((name) => children(this.#root, name).map(scaledBytes));
    if (sizes.length === 0) throw new DomainXmlError('XML_ELEMENT_MISSING', 'the definition has no <memory>');
    return Math.max(...sizes);
  }

  /** File with the UEFI variables; `undefined` without one or when it is not a file. */
  get nvram(): string | undefined {
    const nvram = child(this.#root, 'os', 'nvram');
    const type = attribute(nvram, 'type');
    if (type !== undefined || child(nvram, 'source') !== undefined)
      return attribute(child(nvram, 'source'), 'file');
    return text(nvram);
  }

  /** Files of the host that the machine is started with. */
  get bootFiles(): readonly BootFile[] {
    return readBootFiles(this.#root);
  }

  /**
   * User and group that QEMU runs as; in the definition of a machine that is active, where libvirt's DAC driver
   * writes them as `+UID:+GID`.
   */
  get processUser(): { readonly uid: number; readonly gid: number } | undefined {
    const label = children(this.#root, 'seclabel').find((one) => attribute(one, 'model') === 'dac');
    const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(text(child(label, 'label')) ?? '') ?? [];
    return uid === undefined || gid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) };
  }

  /**
   * Whether an agent has its end of the channel open, as a live definition knows it, which says nothing of its
   * answers; `undefined`: the machine has no channel for one.
   */
  get guestAgent(): 'connected' | 'disconnected' | undefined {
    for (const channel of children(this.#devices, 'channel')) {
      const target = child(channel, 'target');
      if (attribute(target, 'name') !== guestAgentChannel) continue;
      return attribute(target, 'state') === 'connected' ? 'connected' : 'disconnected';
    }
    return undefined;
  }

  /** `emulator` (swtpm), `passthrough`, `external`, … */
  get tpm(): { readonly backend: string } | undefined {
    const tpm = child(this.#devices, 'tpm');
    return tpm === undefined ? undefined : { backend: attribute(child(tpm, 'backend'), 'type') ?? 'unknown' };
  }

  /** Devices that prevent a save of the memory state. */
  get hostDevices(): readonly HostDevice[] {
    return readHostDevices(this.#root);
  }

  get interfaces(): readonly DomainInterface[] {
    return this.#interfaces.map((nic) => {
      const source = child(nic, 'source');
      return {
        mac: attribute(child(nic, 'mac'), 'address')?.toLowerCase(),
        type: attribute(nic, 'type') ?? 'unknown',
        source: attribute(source, 'network') ?? attribute(source, 'bridge') ?? attribute(source, 'dev'),
        model: attribute(child(nic, 'model'), 'type'),
        target: attribute(child(nic, 'target'), 'dev'),
        linkState: attribute(child(nic, 'link'), 'state') === 'down' ? 'down' : 'up',
      };
    });
  }

  /** The `<metadata>` element as XML text. */
  get metadata(): string | undefined {
    const metadata = child(this.#root, 'metadata');
    return metadata === undefined ? undefined : serializeNode(metadata);
  }

  get volumes(): readonly DomainVolume[] {
    return this.#disks.map(readVolume);
  }

  /** @throws DomainXmlError XML_VOLUME_NOT_FOUND */
  volume(target: string): DomainVolume {
    return readVolume(this.#disk(target));
  }

  /**
   * Paths of a volume's images from the top down, as this (live) definition has them.
   * @throws DomainXmlError XML_CHAIN_UNKNOWN when it does not say, or when one of them is not a file or device.
   */
  liveChain(target: string): string[] {
    const { path, backingChain } = this.volume(target);
    const paths = [path, ...(backingChain ?? []).map((image) => image.path)];
    if (backingChain === undefined || paths.includes(undefined)) {
      throw new DomainXmlError('XML_CHAIN_UNKNOWN', `the definition does not say what ${target} stands on`, {
        hint: `ask while the machine runs: virsh dumpxml ${this.name}`,
      });
    }
    return paths.filter((image) => image !== undefined);
  }

  /**
   * Takes every `<backingStore>` out of the disks, so that libvirt reads the chains from the image headers.
   * Left in a save image, an empty one makes the restored machine read zeros instead of its backing file.
   * @param targets only of these; of all unless told
   */
  removeBackingStores(targets?: readonly string[]): void {
    for (const disk of this.#disks) {
      if (targets?.includes(volumeTarget(disk)) === false) continue;
      for (const store of children(disk, 'backingStore')) removeElement(store);
    }
  }

  /**
   * Gives a volume another image file; what was a device, a pool volume or a network volume becomes a file.
   * @throws DomainXmlError XML_VOLUME_NOT_FOUND, XML_VOLUME_NOT_A_FILE for an empty drive and the like
   */
  setVolumePath(target: string, path: string, format?: string): void {
    const disk = this.#disk(target);
    setFileSource(disk, path);
    if (format !== undefined)
      (child(disk, 'driver') ?? appendElement(disk, 'driver')).setAttribute('type', format);
  }

  /**
   * What QEMU does when a volume cannot be read or written: `stop` keeps the guest waiting instead of failing it.
   */
  setErrorPolicies(target: string, policies: ErrorPolicies): void {
    const disk = this.#disk(target);
    const driver = child(disk, 'driver') ?? appendElement(disk, 'driver');
    for (const [name, value] of [
      ['error_policy', policies.write],
      ['rerror_policy', policies.read],
    ] as const) {
      if (value === undefined) driver.removeAttribute(name);
      else driver.setAttribute(name, value);
    }
  }

  /** libvirt forbids `/` and line ends in names. */
  setName(name: string): void {
    if (name === '' || /[/\n]/.test(name)) throw invalidValue('machine name', name);
    this.#rootChild('name').textContent = name;
  }

  /** Also in `<sysinfo>`: libvirt refuses a definition in which the two differ. */
  setUuid(uuid: string): void {
    if (!uuidPattern.test(uuid)) throw invalidValue('UUID', uuid);
    this.#rootChild('uuid').textContent = uuid;
    for (const system of children(child(this.#root, 'sysinfo'), 'system')) {
      for (const entry of children(system, 'entry'))
        if (attribute(entry, 'name') === 'uuid') entry.textContent = uuid;
    }
  }

  /**
   * @param which position in `interfaces`, or the present MAC (of several with the same one: the first)
   * @throws DomainXmlError XML_INTERFACE_NOT_FOUND, XML_VALUE_INVALID
   */
  setMac(which: number | string, mac: string): void {
    if (!macPattern.test(mac)) throw invalidValue('MAC address', mac);
    const nic = this.#interface(which);
    (child(nic, 'mac') ?? appendElement(nic, 'mac')).setAttribute('address', mac);
  }

  /** @throws DomainXmlError XML_INTERFACE_NOT_FOUND */
  connect(which: number | string, place: NetworkPlace): void {
    connectInterface(this.#interface(which), place);
  }

  /** @throws DomainXmlError XML_INTERFACE_NOT_FOUND */
  setLinkState(which: number | string, state: 'up' | 'down'): void {
    const nic = this.#interface(which);
    (child(nic, 'link') ?? appendElement(nic, 'link')).setAttribute('state', state);
  }

  /**
   * Also where libvirt would choose the path itself (`<os firmware='efi'>`, of which a persistent definition
   * need not have an `<nvram>`).
   * @throws DomainXmlError XML_ELEMENT_MISSING when the machine has no UEFI variables in a file.
   */
  setNvram(path: string): void {
    const os = child(this.#root, 'os');
    const chosenByLibvirt =
      os !== undefined && attribute(os, 'firmware') === 'efi' && child(os, 'nvram') === undefined;
    const nvram = chosenByLibvirt ? appendElement(os, 'nvram') : child(os, 'nvram');
    if (nvram === undefined || (!chosenByLibvirt && this.nvram === undefined)) {
      throw new DomainXmlError('XML_ELEMENT_MISSING', 'the definition has no <nvram> that is a file');
    }
    const source = child(nvram, 'source');
    if (source === undefined) nvram.textContent = path;
    else source.setAttribute('file', path);
  }

  /**
   * Makes it the definition of another machine that can run beside the one it was taken from: name, UUID,
   * MACs, and nothing left that belongs to a running instance. Paths of volumes and NVRAM are the caller's.
   * @throws DomainXmlError XML_VALUE_INVALID
   */
  prepareForNewMachine(identity: NewMachineIdentity): void {
    if (identity.macs.length !== this.#interfaces.length) {
      throw invalidValue(
        `number of MAC addresses (${this.#interfaces.length} needed)`,
        `${identity.macs.length}`,
      );
    }
    this.setName(identity.name);
    this.setUuid(identity.uuid);
    for (const [index, mac] of identity.macs.entries()) this.setMac(index, mac);
    removeInstanceState(this.#root);
  }

  /**
   * Keeps the machine from reaching anything but its own volumes (`domainIsolation.ts`).
   * @returns what cannot be kept apart, for people
   */
  isolate(volumes: readonly string[], serialLog: string): readonly string[] {
    return isolate(this.#root, volumes, serialLog);
  }

  /** There is a screen of which a picture can be taken. */
  get hasScreen(): boolean {
    const models = children(this.#devices, 'video').map((video) => attribute(child(video, 'model'), 'type'));
    return models.some((model) => model !== 'none');
  }

  /** Lets the machine have a processor as this host offers it; its topology stays. */
  useProcessorOfHost(): void {
    const cpu = child(this.#root, 'cpu') ?? appendElement(this.#root, 'cpu');
    for (const { name } of Array.from(cpu.attributes)) cpu.removeAttribute(name);
    for (const kind of ['model', 'vendor', 'feature'])
      for (const element of children(cpu, kind)) removeElement(element);
    cpu.setAttribute('mode', 'host-model');
    cpu.setAttribute('check', 'partial');
  }

  /** Takes the consoles' passwords over from a definition of the same machine that has them. */
  takeSecretsFrom(other: DomainXml): void {
    copySecrets(other.#root, this.#root);
  }

  /** Removes passwords; returns what was removed, for a warning. */
  stripSecrets(): readonly string[] {
    return removeSecrets(this.#root);
  }

  get #root(): Element {
    const root = this.#document.documentElement;
    if (root === null) throw new Error('a parsed definition always has a root');
    return root;
  }

  get #devices(): Element | undefined {
    return child(this.#root, 'devices');
  }

  get #disks(): Element[] {
    return children(this.#devices, 'disk');
  }

  get #interfaces(): Element[] {
    return children(this.#devices, 'interface');
  }

  #disk(target: string): Element {
    const disk = this.#disks.find((element) => volumeTarget(element) === target);
    if (disk === undefined) {
      throw new DomainXmlError('XML_VOLUME_NOT_FOUND', `the definition has no volume ${target}`);
    }
    return disk;
  }

  #interface(which: number | string): Element {
    const nic =
      typeof which === 'number'
        ? this.#interfaces[which]
        : this.#interfaces.find(
            (element) => attribute(child(element, 'mac'), 'address')?.toLowerCase() === which.toLowerCase(),
          );
    if (nic === undefined) {
      throw new DomainXmlError('XML_INTERFACE_NOT_FOUND', `the definition has no network interface ${which}`);
    }
    return nic;
  }

  #rootChild(name: string): Element {
    return child(this.#root, name) ?? appendElement(this.#root, name);
  }
}

function scaledBytes(element: Element): number {
  const amount = Number(text(element));
  const unit = (attribute(element, 'unit') ?? 'KiB').toLowerCase();
  if (unit === 'b' || unit === 'bytes') return amount;
  const power = unitPrefixes.indexOf(unit[0] ?? '');
  const suffix = unit.slice(1);
  if (!Number.isFinite(amount) || power < 1 || !['', 'b', 'ib'].includes(suffix)) {
    throw new DomainXmlError('XML_INVALID', `the definition has a memory size of "${text(element)} ${unit}"`);
  }
  return amount * (suffix === 'b' ? 1000 : 1024) ** power;
}

function required(value: string | undefined, name: string): string {
  if (value === undefined) throw new DomainXmlError('XML_ELEMENT_MISSING', `the definition has no ${name}`);
  return value;
}

function invalidValue(what: string, value: string): DomainXmlError {
  return new DomainXmlError('XML_VALUE_INVALID', `not a valid ${what}: ${JSON.stringify(value)}`);
}
