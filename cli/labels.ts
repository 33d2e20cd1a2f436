import { CliError } from './errors.ts';

/** Labels of the form `key=value`. @throws CliError USAGE */
export function parseLabels(texts: readonly string[]): Readonly<Record<string, string>> {
  return Object.fromEntries(
    texts.map((text): [string, string] => {
      const at = text.indexOf('=');
      if (at < 1) throw new CliError('USAGE', `"${text}" is not a label`, '--label key=value');
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
}
