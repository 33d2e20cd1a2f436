import { isMap, isScalar, isSeq, LineCounter, parseDocument } from 'yaml';
import type { Document } from 'yaml';
import type { ConfigProblem } from './errors.ts';

/** A key's place in the configuration, from the top. */
export type KeyPath = readonly PropertyKey[];

/** Lists grow across files; of everything else, the last file that names a thing defines it whole. */
const listSection = 'machines';
const maxAliases = 100;

/** One YAML file of a configuration; knows where each of its keys stands. */
export class ConfigSource {
  readonly file: string;
  readonly #document: Document;
  readonly #lines = new LineCounter();

  constructor(file: string, text: string) {
    this.file = file;
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false, stringKeys: true });
  }

  /** What is wrong with it as YAML. A warning (an unknown tag, say) means that it would be misread. */
  problems(): readonly ConfigProblem[] {
    const found = [...this.#document.errors, ...this.#document.warnings].map(({ pos, message }) =>
      this.#problem(pos[0], '', message),
    );
    return found.length === 0 ? this.#problemsOfAliases() : found;
  }

  /** A few lines of aliases to aliases can stand for gigabytes; the parser gives up on them. */
  #problemsOfAliases(): readonly ConfigProblem[] {
    try {
      this.value();
      return [];
    } catch (error) {
      if (!(error instanceof ReferenceError)) throw error;
      return [this.#problem(0, '', error.message)];
    }
  }

  /** The plain value; an empty file is an empty configuration. */
  value(): unknown {
    return this.#document.toJS({ maxAliasCount: maxAliases }) ?? {};
  }

  /** True when this file has a key at this path. */
  has(path: KeyPath): boolean {
    return this.#document.hasIn([...path]);
  }

  /** Number of items in a list at the top. */
  lengthOf(section: string): number {
    const node = this.#document.get(section, true);
    return isSeq(node) ? node.items.length : 0;
  }

  /** A problem at a key, or at the nearest thing above it that is there. */
  problemAt(path: KeyPath, message: string, shownPath: KeyPath = path): ConfigProblem {
    const known = path.slice(0, path.findLastIndex((_, index) => this.has(path.slice(0, index + 1))) + 1);
    return this.#problem(this.#offset(known), shownPath.map(String).join('.'), message);
  }

  /** Where the key of the last part of a path stands, or the item of a list. */
  #offset(path: KeyPath): number {
    const parent = path.length < 2 ? this.#document.contents : this.#document.getIn(path.slice(0, -1), true);
    const last = path.at(-1);
    if (isMap(parent) && last !== undefined) {
      const key = parent.items.find(
        (pair) => isScalar(pair.key) && String(pair.key.value) === String(last),
      )?.key;
      if (isScalar(key)) return key.range?.[0] ?? 0;
    }
    const node = this.#document.getIn([...path], true);
    return hasRange(node) ? (node.range[0] ?? 0) : 0;
  }

  #problem(offset: number, key: string, message: string): ConfigProblem {
    const { line, col } = this.#lines.linePos(offset);
    return {
      file: this.file,
      line: Math.max(line, 1),
      column: Math.max(col, 1),
      key,
      message,
    };
  }
}

function hasRange(node: unknown): node is { readonly range: readonly number[] } {
  return typeof node === 'object' && node !== null && 'range' in node && Array.isArray(node.range);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Several files as one configuration. In `agent`, `storages` and `policies` the last file that names a key
 * defines it whole; `machines` of later files follow those of earlier ones.
 */
export class ConfigSources {
  readonly #sources: readonly ConfigSource[];

  /** @param sources in the order of their names; at least one */
  constructor(sources: readonly ConfigSource[]) {
    this.#sources = sources;
  }

  merged(): unknown {
    const whole: Record<string, unknown> = {};
    for (const value of this.#sources.map((source) => source.value())) {
      if (!isObject(value)) return value;
      for (const [section, content] of Object.entries(value)) {
        if (content === null) continue; // a section with everything in it commented out
        const before = whole[section];
        if (Array.isArray(before) && Array.isArray(content)) {
          whole[section] = [...(before as unknown[]), ...(content as unknown[])];
        } else if (isObject(before) && isObject(content)) {
          whole[section] = { ...before, ...content };
        } else if (before === undefined || Array.isArray(before) === (section === listSection)) {
          whole[section] = content;
        } // else an earlier file has the wrong type here, and that must not be covered up
      }
    }
    return whole;
  }

  /** A problem at a key of the merged configuration, in the file that it comes from. */
  problemAt(path: KeyPath, message: string): ConfigProblem {
    const { source, localPath } = this.#origin(path);
    return source.problemAt(localPath, message, path);
  }

  has(path: KeyPath): boolean {
    const { source, localPath } = this.#origin(path);
    return source.has(localPath);
  }

  #origin(path: KeyPath): { readonly source: ConfigSource; readonly localPath: KeyPath } {
    const [section, second, ...rest] = path;
    if (section === listSection && typeof second === 'number') {
      let index = second;
      for (const source of this.#sources) {
        const length = source.lengthOf(listSection);
        if (index < length) return { source, localPath: [section, index, ...rest] };
        index -= length;
      }
    }
    const nearest = [path.slice(0, 2), path.slice(0, 1)]
      .map((known) => this.#sources.findLast((source) => source.has(known)))
      .find((source) => source !== undefined);
    const source = nearest ?? this.#sources[0];
    if (source === undefined) throw new Error('a configuration without a file');
    return { source, localPath: path };
  }
}
