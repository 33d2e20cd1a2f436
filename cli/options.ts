import { CliError } from './errors.ts';

/** The options of a verb as they were typed, by their long names in camelCase. */
export class Options {
  /** Which options were typed; the others have their defaults. */
  readonly typed: readonly string[];
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(values: Readonly<Record<string, unknown>>, typed: readonly string[] = Object.keys(values)) {
    this.#values = values;
    this.typed = typed;
  }

  /**
   * Refuses what would be accepted and do nothing.
   * @param known options that mean something with `what`
   * @throws CliError USAGE
   */
  allowOnly(known: readonly string[], what: string, hint: string): void {
    this.refuse(
      this.typed.filter((name) => !known.includes(name)),
      what,
      hint,
    );
  }

  /**
   * Refuses options that would do nothing.
   * @throws CliError USAGE
   */
  refuse(names: readonly string[], what: string, hint: string): void {
    const idle = this.typed.filter((name) => names.includes(name)).map(longNameOf);
    if (idle.length > 0) throw new CliError('USAGE', `${what} does not know ${idle.join(', ')}`, hint);
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** All values of an option that can be given several times; `undefined` when it was not given. */
  texts(name: string): readonly string[] | undefined {
    const value = this.#values[name];
    return Array.isArray(value) ? value.map(String) : undefined;
  }
}

/** The option as it is typed: `--in-place` for `inPlace`. */
export function longNameOf(name: string): string {
  // The only one that is typed to take something away.
  if (name === 'safetyCopy') return '--no-safety-copy';
  return `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
