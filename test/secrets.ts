/*
 * What a test uses as a secret is told here, and so is everything that the product logs, prints or keeps while the test
 * runs: a secret that shows anywhere fails the test there and then. One test file is one process, and knows its own.
 */

/** What a secret is. A recovery key is printed once, by who makes it. */
export type SecretKind =
  | 'repository key'
  | 'recovery key'
  | 'S3 secret'
  | 'LUKS secret'
  | 'VNC password'
  | 'libvirt secret'
  | 'webhook secret';

/** Shorter ones are found by chance. */
const lengthMin = 8;
/** As much of what was said is kept for secrets that become known later only. */
const keptBytesMax = 2 * 1024 * 1024;
/** Tests that go through hundreds of sites make a key for each: those of sites that are long gone are forgotten. */
const secretsMax = 32;

const secrets = new Map<string, Secret>();
const said: Said[] = [];
let saidBytes = 0;

interface Secret {
  readonly kind: SecretKind;
  /** As it is, and as programs hand secrets on. */
  readonly forms: readonly string[];
}

interface Said {
  /** Who has said it. */
  readonly where: string;
  readonly text: string;
  /** What is shown there on purpose. */
  readonly shows: SecretKind | undefined;
}

/** A secret was shown where nobody may see it. */
export class SecretShown extends Error {
  override readonly name = 'SecretShown';
}

/**
 * From now on this shows nowhere, nor has it before. @returns the same
 * @throws SecretShown
 */
export function keepSecret(kind: SecretKind, secret: string): string {
  if (secret.length < lengthMin)
    throw new Error(`a ${kind} of less than ${lengthMin} characters is found by chance`);
  const forms = [secret, Buffer.from(secret).toString('base64'), encodeURIComponent(secret)];
  secrets.delete(secret);
  secrets.set(secret, { kind, forms });
  const [oldest] = secrets.keys();
  if (secrets.size > secretsMax && oldest !== undefined) secrets.delete(oldest);
  for (const one of said) requireHidden(one, { kind, forms });
  return secret;
}

/**
 * Takes note of what the product has said, and of what it keeps in readable files.
 * @param options.shows what is shown there on purpose
 * @throws SecretShown
 */
export function noteSaid(
  where: string,
  text: string,
  options: { readonly shows?: SecretKind | undefined } = {},
): void {
  if (text === '') return;
  const one = { where, text, shows: options.shows };
  for (const secret of secrets.values()) requireHidden(one, secret);
  said.push(one);
  saidBytes += text.length;
  while (saidBytes > keptBytesMax) saidBytes -= said.shift()?.text.length ?? saidBytes;
}

function requireHidden({ where, text, shows }: Said, { kind, forms }: Secret): void {
  if (kind === shows || !forms.some((form) => text.includes(form))) return;
  // Not the secret itself: what tests print is kept, too.
  throw new SecretShown(`a ${kind} is shown by ${where}`);
}
