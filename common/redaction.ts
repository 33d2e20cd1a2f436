/** What takes the place of a secret. */
const censor = '[secret]';

/**
 * Secrets that are known by their form, wherever they stand. Quotation marks may be escaped, because log lines are JSON.
 */
const forms: readonly (readonly [RegExp, string])[] = [
  // Attributes of domain definitions: <graphics passwd='…'>, and passwords of other elements.
  [/\b(passwd|password)=(\\?["'])(?:(?!\2).)*\2/gi, `$1=$2${censor}$2`],
  // Lines of a credentials file.
  [/\b(AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN)=[^\s"'\\]+/g, `$1=${censor}`],
  // User and password in an address.
  [/\b([a-z][a-z0-9+.-]*:\/\/)[^\s/@"'\\:]+:[^\s/@"'\\]+@/gi, `$1${censor}@`],
  // Recovery keys of repositories: 14 groups of 4.
  [/\b(?:[0-9A-Z]{4}-){13}[0-9A-Z]{4}\b/g, censor],
];

/** The text with every secret taken out that is known by its form. */
export function withoutSecrets(text: string): string {
  return forms.reduce((rest, [form, replacement]) => rest.replaceAll(form, replacement), text);
}
