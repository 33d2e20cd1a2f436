/** What a text of others may give away, and what stands in its place. */
const secrets: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [^-]*PRIVATE KEY-----[^]*?(?:-----END [^-]*PRIVATE KEY-----|$)/g, '[secret]'],
  [/\b(Bearer|Basic)\s+[\w.~+/=-]+/gi, '$1 [secret]'],
  [/(\b[a-z][a-z0-9+.-]*:\/\/[^\s/:@]*):[^\s/@]+@/gi, '$1:[secret]@'],
  [
    /([\w-]*(?:password|passwd|passphrase|secret|token|credential|(?:api|access|private)[_-]?key)[\w-]*["']?\s*[:=]\s*)(?:"[^"\n]*"|'[^'\n]*'|[^\s,;]+)/gi,
    '$1[secret]',
  ],
];

/**
 * Takes out of a text what looks like a secret: values of names such as `password` or `token`, credentials in URLs and
 * in HTTP headers, private keys. It cannot know every secret: whoever prints one under another name gives it away.
 */
export function redactText(text: string): string {
  return secrets.reduce((redacted, [pattern, replacement]) => redacted.replace(pattern, replacement), text);
}
