/** What the golden repositories have in common. */
export const goldenPassphrase = 'a still caf\u00e9';
export const goldenKeyFile: Buffer = Buffer.from('0123456789abcdef'.repeat(4), 'hex');
export const goldenRecovery: Buffer = Buffer.from('fedcba9876543210'.repeat(4), 'hex');
export const goldenSecrets = [
  { label: 'passphrase', secret: { kind: 'passphrase', passphrase: goldenPassphrase } },
  { label: 'key file', secret: { kind: 'keyFile', key: goldenKeyFile } },
  { label: 'recovery', secret: { kind: 'recovery', key: goldenRecovery } },
] as const;
export const goldenCost = { logN: 14, r: 8, p: 1 };

/** Lines that compress well. */
export function goldenLines(from: number, lengthBytes: number): Buffer {
  let text = '';
  for (let line = from; text.length < lengthBytes; line++) text += `line ${line} of a golden volume\n`;
  return Buffer.from(text.slice(0, lengthBytes));
}
