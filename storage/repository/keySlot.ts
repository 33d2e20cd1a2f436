import { randomBytes, scrypt } from 'node:crypto';
import { promisify } from 'node:util';
import * as z from 'zod';
import { parseDocument } from './document.ts';
import { damaged, RepositoryError } from './errors.ts';
import { KeyRing } from './keyRing.ts';
import { keySlotBytesMax, scryptLogNMax, scryptLogNMin, scryptPMax, scryptRMax } from './limits.ts';
import { hkdf, keyBytes, seal, unseal } from './seal.ts';

/** Something that opens a repository. */
export type Secret =
  | { readonly kind: 'passphrase'; readonly passphrase: string }
  /** 32 bytes; as a file they are 64 hexadecimal digits. */
  | { readonly kind: 'keyFile'; readonly key: Buffer }
  /** 32 bytes; printed by `formatRecoveryKey`. */
  | { readonly kind: 'recovery'; readonly key: Buffer };

const hex = (bytes: number) => z.string().regex(new RegExp(`^[0-9a-f]{${bytes * 2}}$`));

const slotSchema = z.object({
  format: z.literal('stillpoint-key-slot'),
  formatVersion: z.number().int().positive(),
  repositoryId: z.uuid(),
  slotId: hex(8),
  kind: z.enum(['passphrase', 'keyFile', 'recovery']),
  label: z.string().max(200),
  createdAt: z.iso.datetime(),
  salt: hex(32),
  scrypt: z
    .object({
      logN: z.number().int().min(scryptLogNMin).max(scryptLogNMax),
      r: z.number().int().min(1).max(scryptRMax),
      p: z.number().int().min(1).max(scryptPMax),
    })
    .optional(),
  /** `write`: opens what a host needs that writes, and does not read. */
  access: z.literal('write').optional(),
  sealed: z.base64(),
});

/** A key slot as it stands in the repository: the key ring, sealed with one secret. */
export type KeySlot = z.infer<typeof slotSchema>;

/** Cost of guessing a passphrase. The default takes 128 MiB and about 0.4 s. */
export interface ScryptCost {
  readonly logN: number;
  readonly r: number;
  readonly p: number;
}

export const scryptCostDefault: ScryptCost = { logN: 17, r: 8, p: 1 };

const slotVersion = 1;

/** Makes the slot that lets a secret open the repository; with a writer's ring, to write only. */
export async function sealSlot(
  ring: KeyRing,
  secret: Secret,
  options: {
    readonly repositoryId: string;
    readonly label: string;
    readonly createdAt: string;
    readonly cost?: ScryptCost | undefined;
    /** Random; told by test vectors only. */
    readonly slotId?: string | undefined;
    readonly salt?: Buffer | undefined;
  },
): Promise<KeySlot> {
  const slotId = options.slotId ?? randomBytes(8).toString('hex');
  const salt = (options.salt ?? randomBytes(32)).toString('hex');
  const cost = secret.kind === 'passphrase' ? { scrypt: { ...(options.cost ?? scryptCostDefault) } } : {};
  const { repositoryId, label, createdAt } = options;
  const access = ring.isWriter ? ({ access: 'write' } as const) : {};
  const slot = { repositoryId, slotId, kind: secret.kind, label, createdAt, salt, ...cost, ...access };
  const key = await slotKey(slot, secret);
  return {
    format: 'stillpoint-key-slot',
    formatVersion: slotVersion,
    ...slot,
    sealed: seal(key, slotBound(slot), ring.encode()).toString('base64'),
  };
}

/** The key ring, or `null` when it is another secret that opens this slot. Rejects with REPOSITORY_DAMAGED. */
export async function openSlot(slot: KeySlot, secret: Secret): Promise<KeyRing | null> {
  if (slot.kind !== secret.kind) return null;
  const ring = unseal(await slotKey(slot, secret), slotBound(slot), Buffer.from(slot.sealed, 'base64'));
  if (ring === null) return null;
  return slot.access === 'write' ? KeyRing.decodeWriter(ring) : KeyRing.decode(ring);
}

export function formatSlot(slot: KeySlot): Buffer {
  return Buffer.from(`${JSON.stringify(slot)}\n`);
}

/** Reads a slot that may come from anybody. */
export function parseSlot(bytes: Buffer, what: string): KeySlot {
  const slot = parseDocument(bytes, what, {
    schema: slotSchema,
    version: slotVersion,
    bytesMax: keySlotBytesMax,
  });
  if ((slot.kind === 'passphrase') !== (slot.scrypt !== undefined))
    throw damaged(what, 'a slot has the parameters of scrypt when it is for a passphrase, and only then');
  return slot;
}

/** The text of a key file. */
export function formatKeyFile(key: Buffer): string {
  return `${key.toString('hex')}\n`;
}

export function newKeyFileKey(): Buffer {
  return randomBytes(keyBytes);
}

/** Reads the text of a key file. Throws KEY_WRONG, without any of the text. */
export function parseKeyFile(text: string): Buffer {
  if (!/^[0-9a-f]{64}\s*$/i.test(text)) {
    throw new RepositoryError('KEY_WRONG', 'the key file does not hold 64 hexadecimal digits', {
      hint: 'openssl rand -hex 32 makes the content of a key file',
    });
  }
  return Buffer.from(text.trim(), 'hex');
}

type SlotParameters = Pick<KeySlot, 'repositoryId' | 'slotId' | 'kind' | 'salt' | 'scrypt' | 'access'>;

async function slotKey(slot: SlotParameters, secret: Secret): Promise<Buffer> {
  const salt = Buffer.from(slot.salt, 'hex');
  const material =
    secret.kind === 'passphrase' ? await stretch(secret.passphrase, salt, slot.scrypt) : secret.key;
  if (material.length !== keyBytes) throw new RepositoryError('KEY_WRONG', 'the key is not 32 bytes long');
  return hkdf(material, salt, Buffer.from(`stillpoint/1/slot/${slot.kind}`, 'latin1'));
}

const scryptAsync = promisify<
  string,
  Buffer,
  number,
  { N: number; r: number; p: number; maxmem: number },
  Buffer
>(scrypt);

async function stretch(passphrase: string, salt: Buffer, cost: ScryptCost | undefined): Promise<Buffer> {
  const { logN, r, p } = cost ?? scryptCostDefault;
  const N = 2 ** logN;
  // The same letters must give the same bytes on every keyboard.
  return scryptAsync(passphrase.normalize('NFC'), salt, keyBytes, { N, r, p, maxmem: 256 * N * r });
}

function slotBound(slot: SlotParameters): Buffer {
  const access = slot.access === undefined ? '' : `/${slot.access}`;
  return Buffer.from(`stillpoint/1/slot/${slot.repositoryId}/${slot.slotId}${access}`, 'latin1');
}
