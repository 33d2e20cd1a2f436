import { createHash } from 'node:crypto';
import { ApiError } from './errors.ts';

const hardMax = 1000;
/** Of the messages of a page together: an answer may have 4 MiB, with what else is in it. */
const bytesMax = 3 * 1024 * 1024;
const listDigestBytes = 6;

/** Which page of a list is asked for. */
export interface PageRequest {
  readonly pageSize: number;
  readonly pageToken: string;
}

/** A part of a list, and the token for the part behind it; empty: there is none. */
export interface Page<T> {
  readonly items: readonly T[];
  readonly nextPageToken: string;
}

/** A list that is told page by page. */
export interface PagedList<T> {
  /** Its name and what filters it, which a token is bound to: the key of another list means nothing in this one. */
  readonly of: readonly (string | boolean)[];
  /** Different for each item, and growing or falling in the order of the list. */
  readonly keyOf: (item: T) => string;
  /** Where the request names none. */
  readonly defaultSize: number;
}

/**
 * The pages of a list that is in the order of its keys. A token is the key after which the next page begins, so that what
 * comes and goes between two pages makes no other item appear twice or not at all.
 */
export class Pages<T> {
  /** How many items the page has at the most. */
  readonly size: number;
  /** The key of the last item of the page before; `undefined`: it is the first page. */
  readonly after: string | undefined;
  readonly #keyOf: (item: T) => string;
  readonly #list: Buffer;

  /** @throws ApiError REQUEST_INVALID for a token that is none, or of another list */
  constructor({ pageSize, pageToken }: PageRequest, { of, keyOf, defaultSize }: PagedList<T>) {
    this.size = Math.min(pageSize === 0 ? defaultSize : pageSize, hardMax);
    this.#keyOf = keyOf;
    this.#list = createHash('sha256').update(JSON.stringify(of)).digest().subarray(0, listDigestBytes);
    this.after = this.#keyOfToken(pageToken);
  }

  /** The page asked for. @param items all of the list, their keys growing */
  of(items: readonly T[]): Page<T> {
    const { after } = this;
    return this.from(after === undefined ? items : items.filter((item) => this.#keyOf(item) > after));
  }

  /** The page asked for. @param items behind the page before: more than a page where there is another */
  from(items: readonly T[]): Page<T> {
    const page = items.slice(0, this.size);
    const last = page.at(-1);
    const isLast = last === undefined || page.length === items.length;
    return { items: page, nextPageToken: isLast ? '' : this.#tokenOf(last) };
  }

  /**
   * As many messages of a page as fit into one answer, but one at the least, and where the next page begins then.
   * @param messages one for each item of the page
   */
  fitting<Message>(
    { items, nextPageToken }: Page<T>,
    messages: readonly Message[],
    { encode }: Encoder<Message>,
  ): { readonly messages: Message[]; readonly nextPageToken: string } {
    let bytes = 0;
    const over = messages.findIndex((message, index) => {
      bytes += encode(message).finish().length;
      return index > 0 && bytes > bytesMax;
    });
    const last = items[over - 1];
    if (last === undefined) return { messages: [...messages], nextPageToken };
    return { messages: messages.slice(0, over), nextPageToken: this.#tokenOf(last) };
  }

  #tokenOf(item: T): string {
    return Buffer.concat([this.#list, Buffer.from(this.#keyOf(item))]).toString('base64url');
  }

  #keyOfToken(token: string): string | undefined {
    if (token === '') return undefined;
    const bytes = Buffer.from(token, 'base64url');
    const isOurs =
      bytes.toString('base64url') === token && bytes.subarray(0, listDigestBytes).equals(this.#list);
    if (isOurs) return bytes.subarray(listDigestBytes).toString();
    throw new ApiError('REQUEST_INVALID', 'the page_token is none of this list', {
      hint: 'give back next_page_token as it came, with the same filters',
    });
  }
}

/** What makes the bytes of a message. */
interface Encoder<Message> {
  readonly encode: (message: Message) => { readonly finish: () => Uint8Array };
}
