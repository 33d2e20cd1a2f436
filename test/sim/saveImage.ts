import { open, readFile } from 'node:fs/promises';
import { constants } from 'node:os';

import { isErrno } from '../../common/errors.ts';
import { refusal } from './errors.ts';

/**
 * libvirt's save image (`virQEMUSaveHeader`, version 2), little endian:
 * magic 16 · version u32 · data length u32 · was running u32 · compressed u32 · cookie offset u32 · unused
 * 14 × u32; then `data length` bytes: definition, NUL, cookie at its offset, NUL, zeros; then QEMU's stream,
 * which here is one line of JSON, filling, and an end mark.
 */
const headerSizeBytes = 92;
const magicPartial = 'LibvirtQemudPart';
const magicComplete = 'LibvirtQemudSave';
const cookie = '<cookie/>';
const paddingBytes = 1024;
const endMark = 'END OF SIMULATED MEMORY';

/** What the simulated machine's memory holds. */
export interface SimulatedMemory {
  readonly uuid: string;
  /** The number that the guest wrote last. */
  readonly sequence: number;
}

export interface SaveImage {
  readonly definition: string;
  readonly wasRunning: boolean;
  /** `undefined` when the file ends before the memory does. */
  readonly memory: SimulatedMemory | undefined;
}

/** Creates or truncates the file as libvirt does, with the magic of an incomplete image. */
export async function beginSaveImage(path: string, definition: string, wasRunning: boolean): Promise<void> {
  const xml = Buffer.from(`${definition}\0`);
  const data = Buffer.concat([xml, Buffer.from(`${cookie}\0`), Buffer.alloc(paddingBytes)]);
  const header = Buffer.alloc(headerSizeBytes);
  header.write(magicPartial, 'latin1');
  header.writeUInt32LE(2, 16);
  header.writeUInt32LE(data.length, 20);
  header.writeUInt32LE(wasRunning ? 1 : 0, 24);
  header.writeUInt32LE(xml.length, 32);
  const file = await open(path, 'w', 0o600);
  try {
    await file.writev([header, data]);
  } finally {
    await file.close();
  }
}

export async function appendMemory(path: string, memory: SimulatedMemory, fillBytes: number): Promise<void> {
  const file = await open(path, 'a');
  try {
    await file.write(`${JSON.stringify(memory)}\n${'m'.repeat(fillBytes)}${endMark}`);
    await file.datasync();
  } finally {
    await file.close();
  }
}

export async function completeSaveImage(path: string): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await file.write(magicComplete, 0, 'latin1');
  } finally {
    await file.close();
  }
}

/** `virDomainSaveImageDefineXML`: the definition, whose length stays that of the old one. */
export async function replaceDefinition(path: string, definition: string): Promise<void> {
  const { wasRunning, memory } = await readSaveImage(path);
  if (memory === undefined) throw refusal('internal', 'the memory of the simulator is incomplete');
  const content = await readWhole(path);
  const stream = content.subarray(headerSizeBytes + content.readUInt32LE(20));
  await beginSaveImage(path, definition, wasRunning);
  const file = await open(path, 'a');
  try {
    await file.write(stream);
  } finally {
    await file.close();
  }
  await completeSaveImage(path);
}

/** @throws HypervisorError with the numbers that libvirt gives for each kind of damage */
export async function readSaveImage(path: string): Promise<SaveImage> {
  const content = await readWhole(path);
  if (content.length < headerSizeBytes) throw refusal('operationFailed', 'failed to read qemu header');
  const magic = content.toString('latin1', 0, 16);
  if (magic === magicPartial) throw refusal('operationFailed', 'save image is incomplete');
  if (magic !== magicComplete) throw refusal('operationFailed', 'image magic is incorrect');
  const dataEnd = headerSizeBytes + content.readUInt32LE(20);
  if (content.length < dataEnd) throw refusal('operationFailed', 'failed to read domain XML');
  const data = content.subarray(headerSizeBytes, dataEnd);
  const stream = content.toString('utf8', dataEnd);
  return {
    definition: data.toString('utf8', 0, data.indexOf(0)),
    wasRunning: content.readUInt32LE(24) === 1,
    memory: stream.endsWith(endMark) ? parseMemory(stream) : undefined,
  };
}

function parseMemory(stream: string): SimulatedMemory {
  const parsed: unknown = JSON.parse(stream.slice(0, stream.indexOf('\n')));
  if (typeof parsed !== 'object' || parsed === null || !('uuid' in parsed) || !('sequence' in parsed)) {
    throw new Error('not a memory of the simulator');
  }
  return { uuid: String(parsed.uuid), sequence: Number(parsed.sequence) };
}

async function readWhole(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
    throw refusal(
      'system',
      `Failed to open file '${path}': No such file or directory`,
      constants.errno.ENOENT,
    );
  }
}
