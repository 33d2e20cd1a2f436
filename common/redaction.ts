/** What takes the place of a secret. */
const censor = '[secret]';

type Form = readonly [RegExp, string];

/** User and password in an address. */
const inAddress: Form = [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/@"'\\:]*:[^\s/@"'\\]+@/gi, `$1${censor}@`];

/**
 * Secrets that are known by their form, wherever they stand. Quotation marks may be escaped, because log lines are JSON.
 */
const known: readonly Form[] = [
  // Attributes of domain definitions: <graphics passwd='…'>, and passwords of other elements.
  [/\b(passwd|password)=(\\?["'])(?:(?!\2).)*\2/gi, `$1=$2${censor}$2`],
  // Lines of a credentials file.
  [/\b(AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN)=[^\s"'\\]+/g, `$1=${censor}`],
  inAddress,
  // Recovery keys of repositories: 14 groups of 4.
  [/\b(?:[0-9A-Z]{4}-){13}[0-9A-Z]{4}\b/g, censor],
];

/** What looks like a secret in texts of others. */
const suspected: readonly Form[] = [
  [/-----BEGIN [^-]*PRIVATE KEY-----[^]*?(?:-----END [^-]*PRIVATE KEY-----|$)/g, censor],
  [/\b(Bearer|Basic)\s+[\w.~+/=-]+/gi, `$1 ${censor}`],
  inAddress,
  [
    /([\w-]*(?:password|passwd|passphrase|secret|token|credential|(?:api|access|private)[_-]?key)[\w-]*["']?\s*[:=]\s*)(?:"[^"\n]*"|'[^'\n]*'|[^\s,;]+)/gi,
    `$1${censor}`,
  ],
];

/** The text with every secret taken out that is known by its form: what is ours, and what libvirt quotes, stays legible. */
export function withoutSecrets(text: string): string {
  return replaced(text, known);
}

/**
 * The text with everything taken out that looks like a secret: values of names such as `password` or `token`, credentials
 * in addresses and in HTTP headers, private keys. For what programs of others print. It cannot know every secret: whoever
 * prints one under another name gives it away.
 */
export function withoutSuspects(text: string): string {
  return replaced(text, suspected);
}

function replaced(text: string, forms: readonly Form[]): string {
  return forms.reduce((rest, [form, replacement]) => rest.replaceAll(form, replacement), text);
}
