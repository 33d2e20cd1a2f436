/** A version of an object; `content` is `null` for the marker of a deletion. */
export interface ObjectVersion<Content> {
  readonly versionId: string;
  readonly content: Content | null;
  readonly changedAt: Date;
  readonly retainedUntil: Date | null;
}

/**
 * The versions of the objects of a bucket. With a lock it keeps all of them, and those under compliance retention
 * against everybody; without, it has one of each, and takes and forgets what it is told about retention.
 */
export class ObjectVersions<Content> {
  readonly isLocking: boolean;
  /** The clock of the server. */
  now: () => number = Date.now;
  readonly #versions = new Map<string, ObjectVersion<Content>[]>();
  #count = 0;

  constructor(isLocking: boolean) {
    this.isLocking = isLocking;
  }

  /** Newest first. */
  of(key: string): readonly ObjectVersion<Content>[] {
    return this.#versions.get(key) ?? [];
  }

  find(key: string, versionId: string | null): ObjectVersion<Content> | undefined {
    const versions = this.of(key);
    return versionId === null ? versions[0] : versions.find((version) => version.versionId === versionId);
  }

  get keys(): readonly string[] {
    return [...this.#versions.keys()].toSorted();
  }

  add(key: string, content: Content, retainUntil: Date | null): void {
    this.#put(key, content, retainUntil);
  }

  /** What a deletion without a version does. */
  remove(key: string): void {
    if (this.isLocking) this.#put(key, null, null);
    else this.#versions.delete(key);
  }

  /** Returns false where it is refused. */
  removeVersion(key: string, versionId: string): boolean {
    const version = this.find(key, versionId);
    if (version === undefined) return true;
    if (this.isLocking && version.retainedUntil !== null && version.retainedUntil.getTime() > this.now())
      return false;
    const rest = this.of(key).filter((other) => other !== version);
    if (rest.length === 0) this.#versions.delete(key);
    else this.#versions.set(key, rest);
    return true;
  }

  /** Returns false where it is refused: it would be shorter. */
  retain(key: string, retainedUntil: Date): boolean {
    const [newest, ...others] = this.of(key);
    if (newest === undefined || !this.isLocking) return true;
    if (newest.retainedUntil !== null && newest.retainedUntil > retainedUntil) return false;
    this.#versions.set(key, [{ ...newest, retainedUntil }, ...others]);
    return true;
  }

  #put(key: string, content: Content | null, retainedUntil: Date | null): void {
    this.#count++;
    const changedAt = new Date(this.now());
    if (!this.isLocking)
      return void this.#versions.set(key, [{ versionId: 'null', content, changedAt, retainedUntil: null }]);
    const version = { versionId: `v${this.#count}`, content, changedAt, retainedUntil };
    this.#versions.set(key, [version, ...this.of(key)]);
  }
}
