import { randomUUID } from 'node:crypto';

import type { Element } from '@xmldom/xmldom';

import {
  appendElement,
  child,
  children,
  parseDocument,
  serializeNode,
} from '../../agent/hypervisor/domainDom.ts';
import { volumeTarget } from '../../agent/hypervisor/domainDisk.ts';
import type { BackingImage } from '../../agent/hypervisor/domainXml.ts';
import { DomainXml, DomainXmlError } from '../../agent/hypervisor/domainXml.ts';
import type {
  BlockJob,
  DefinitionKind,
  MachineJob,
  MachineStatus,
} from '../../agent/hypervisor/hypervisor.ts';
import type { RunningBackup } from './pullBackup.ts';
import type { Interruption } from './errors.ts';
import { refusal } from './errors.ts';

/** One simulated QEMU process. */
export interface Instance {
  readonly id: number;
  /** What it runs with, without backing stores. */
  definition: string;
  /** By target: the images below the top image, as they are open. */
  readonly chains: Map<string, readonly BackingImage[]>;
  /** By target: a longer one, which libvirt still believes in. */
  readonly staleChains: Map<string, readonly BackingImage[]>;
  /** The number that the guest wrote last; it is part of the memory. */
  sequence: number;
  readonly blockJobs: Map<string, RunningPull>;
  /** Of a machine with a channel for a guest agent. */
  readonly guest: SimulatedGuest | undefined;
  backup: RunningBackup | undefined;
  /** By target: copy of an image from just before a pull changed its metadata, until these are flushed. */
  readonly unflushed: Map<string, string>;
  /** Targets whose file system is full. */
  readonly full: Set<string>;
  /** Changes to image files, one after the other. */
  work: Promise<unknown>;
}

/** The agent in a guest, and what it has done. A frozen guest stays so without its agent. */
export interface SimulatedGuest {
  frozen: boolean;
  /** `silent`: it is connected, and freezes only when the call has failed (trap 5). */
  agent: 'answers' | 'silent' | 'absent';
}

export interface RunningPull {
  progress: BlockJob;
  readonly controller: AbortController;
  done: Promise<void>;
  /** Pivots an active commit that is ready. */
  finish: (() => Promise<void>) | undefined;
  /** Gone from QEMU, which libvirt has yet to note. */
  isDismissed?: boolean;
}

/** What libvirtd does with a machine at the moment (its state-change lock). */
export interface RunningOperation {
  readonly name: 'save' | 'snapshot' | 'backup' | 'restore' | 'start';
  readonly controller: AbortController;
  job: MachineJob;
  done: Promise<void>;
}

export interface SimulatedMachine {
  readonly uuid: string;
  name: string;
  /** `undefined` for a transient machine. */
  persistent: string | undefined;
  instance: Instance | undefined;
  status: MachineStatus;
  autostart: boolean;
  hasManagedSave: boolean;
  snapshots: string[];
  checkpoints: string[];
  /** Volumes with a bitmap of it, by checkpoint. */
  readonly checkpointTargets: Map<string, readonly string[]>;
  operation: RunningOperation | undefined;
  /** What libvirtd will find out when it starts again. */
  afterRestart: MachineStatus | undefined;
}

/** @throws HypervisorError when the machine does not run */
export function requireInstance(machine: SimulatedMachine): Instance {
  if (machine.instance === undefined) throw refusal('operationInvalid', 'domain is not running');
  return machine.instance;
}

/** @throws HypervisorError when libvirtd is busy with the machine (it would wait 30 s first) */
export function requireUnlocked(machine: SimulatedMachine): void {
  if (machine.operation !== undefined) {
    throw refusal('timeout', `cannot acquire state change lock (held by ${machine.operation.name})`);
  }
}

/** @throws HypervisorError also while a backup is under way, which lets a machine be suspended and powered off only */
export function requireIdle(machine: SimulatedMachine): void {
  requireUnlocked(machine);
  if (machine.instance?.backup !== undefined)
    throw refusal('timeout', 'cannot acquire state change lock (held by backup)');
}

/** Stops everything that goes on in a machine and waits until it has ended. */
export async function interrupt(machine: SimulatedMachine, why: Interruption): Promise<void> {
  machine.operation?.controller.abort(why);
  const pulls = [...(machine.instance?.blockJobs.values() ?? [])];
  for (const pull of pulls) pull.controller.abort(why);
  const { instance } = machine;
  await instance?.backup?.stop();
  if (instance !== undefined) instance.backup = undefined;
  await Promise.all([machine.operation?.done, ...pulls.map((pull) => pull.done)]);
}

/** The running block job of a volume. @throws HypervisorError when there is none */
export function requireBlockJob(machine: SimulatedMachine, target: string): RunningPull {
  const { blockJobs } = requireInstance(machine);
  requireVolume(machine, target);
  const job = blockJobs.get(target);
  if (job === undefined) throw refusal('invalidArgument', `disk ${target} does not have an active block job`);
  return job;
}

/** @throws HypervisorError when the machine has no such volume */
export function requireVolume(machine: SimulatedMachine, target: string): void {
  const definition = machine.instance?.definition ?? renderDefinition(machine, 'persistent');
  if (DomainXml.parse(definition).volumes.some((candidate) => candidate.target === target)) return;
  throw refusal('invalidArgument', `disk '${target}' not found in domain`);
}

/** libvirt refuses to forget a machine of which it keeps something else. */
export function requireNothingKept({ checkpoints, snapshots, hasManagedSave }: SimulatedMachine): void {
  const kept = [
    [checkpoints.length, 'checkpoints'],
    [snapshots.length, 'snapshots'],
    [hasManagedSave ? 1 : 0, 'managed save image'],
  ] as const;
  for (const [count, what] of kept) {
    if (count > 0) throw refusal('operationInvalid', `cannot delete inactive domain with ${count} ${what}`);
  }
}

/** The definition in one of the forms that libvirt prints. */
export function renderDefinition(machine: SimulatedMachine, kind: DefinitionKind): string {
  const { instance } = machine;
  if (kind.startsWith('persistent') || instance === undefined) {
    // Of a transient machine libvirt prints what it would be if it were stored.
    const xml = DomainXml.parse(machine.persistent ?? requireInstance(machine).definition);
    if (kind === 'persistent' || kind === 'live') xml.stripSecrets();
    return xml.toString();
  }
  return kind === 'live' ? renderLive(instance) : renderMigratable(instance);
}

function renderLive(instance: Instance): string {
  const xml = DomainXml.parse(instance.definition);
  xml.stripSecrets();
  return changeRoot(xml.toString(), (root) => {
    root.setAttribute('id', String(instance.id));
    child(root, 'cpu')?.setAttribute('check', 'full');
    const channel = child(root, 'devices', 'channel', 'target');
    if (instance.guest !== undefined)
      channel?.setAttribute('state', instance.guest.agent === 'absent' ? 'disconnected' : 'connected');
    let index = 0;
    for (const disk of children(child(root, 'devices'), 'disk')) {
      const chain = shownChain(instance, volumeTarget(disk));
      if (chain === undefined) continue;
      child(disk, 'source')?.setAttribute('index', String((index += 1)));
      let store = appendElement(disk, 'backingStore');
      for (const image of chain) {
        store.setAttribute('type', image.nbdUrl === undefined ? 'file' : 'network');
        store.setAttribute('index', String((index += 1)));
        appendElement(store, 'format').setAttribute('type', image.format ?? 'raw');
        renderSource(appendElement(store, 'source'), image);
        store = appendElement(store, 'backingStore');
      }
    }
  });
}

/** What libvirt takes for the images below a volume's top image. */
export function shownChain(instance: Instance, target: string): readonly BackingImage[] | undefined {
  return instance.staleChains.get(target) ?? instance.chains.get(target);
}

function renderSource(source: Element, { path, nbdUrl: url }: BackingImage): void {
  const [, name, socket] = /^nbd\+unix:\/\/\/(.*)\?socket=(.*)$/.exec(url ?? '') ?? [];
  if (name === undefined || socket === undefined) return source.setAttribute('file', path ?? '');
  source.setAttribute('protocol', 'nbd');
  source.setAttribute('name', name);
  const host = appendElement(source, 'host');
  host.setAttribute('transport', 'unix');
  host.setAttribute('socket', socket);
}

/** libvirt leaves a non-empty backing store out of this one and keeps an empty one: trap 1. */
function renderMigratable(instance: Instance): string {
  return changeRoot(instance.definition, (root) => {
    child(root, 'cpu')?.setAttribute('check', 'none');
    for (const disk of children(child(root, 'devices'), 'disk')) {
      if (shownChain(instance, volumeTarget(disk))?.length === 0) appendElement(disk, 'backingStore');
    }
  });
}

/** Only a definition of the migratable kind can go into a save image. */
export function requireMigratable(definition: string, machine: SimulatedMachine): DomainXml {
  const xml = parseDefinition(definition);
  requireSameMachine(xml, { name: machine.name, uuid: machine.uuid });
  changeRoot(definition, (root) => {
    if (child(root, 'cpu')?.getAttribute('check') === 'full') {
      throw refusal('configUnsupported', 'Target CPU check full does not match source none');
    }
  });
  return xml;
}

/** libvirt lets nobody rename a machine through the definition of a save image. */
export function requireSameMachine(
  xml: DomainXml,
  source: { readonly name: string; readonly uuid: string },
): void {
  for (const field of ['uuid', 'name'] as const) {
    if (xml[field] === source[field]) continue;
    throw refusal(
      'configUnsupported',
      `Target domain ${field} ${xml[field]} does not match source ${source[field]}`,
    );
  }
}

/** @throws HypervisorError DEFINITION_INVALID */
export function parseDefinition(definition: string): DomainXml {
  try {
    const xml = DomainXml.parse(definition);
    if (!/<uuid>/.test(definition)) xml.setUuid(randomUUID());
    if (xml.name !== '' && xml.volumes.every((volume) => volume.target !== '') && definition.includes('<os>'))
      return xml;
  } catch (error) {
    if (!(error instanceof DomainXmlError)) throw error;
    throw refusal('xml', error.message);
  }
  throw refusal('xml', 'an os <type> must be specified');
}

function changeRoot(xml: string, change: (root: Element) => void): string {
  const document = parseDocument(xml, 'domain');
  const root = document.documentElement;
  if (root === null) throw new Error('a parsed definition always has a root');
  change(root);
  return serializeNode(document);
}
