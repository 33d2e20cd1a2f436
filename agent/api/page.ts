import { ApiError } from './errors.ts';

const hardMax = 1000;
/** Of the messages of a page together: an answer may have 4 MiB, with what else is in it. */
const bytesMax = 3 * 1024 * 1024;

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

/**
 * A page of a list that is in the order of its keys. The token is the key after which the next page begins, so that what
 * comes and goes between two pages makes no other item appear twice or not at all.
 * @param keyOf different for each item, and growing
 * @throws ApiError REQUEST_INVALID for a token that is none
 */
export function pageOf<T>(
  items: readonly T[],
  keyOf: (item: T) => string,
  { pageSize, pageToken }: PageRequest,
  defaultSize: number,
): Page<T> {
  const after = keyBefore({ pageToken });
  const rest = after === undefined ? items : items.filter((item) => keyOf(item) > after);
  return pageFrom(rest, keyOf, sizeOf({ pageSize }, defaultSize));
}

/** A page, and where the next one begins. @param items behind the page before: more than a page where there is another */
export function pageFrom<T>(items: readonly T[], keyOf: (item: T) => string, size: number): Page<T> {
  const page = items.slice(0, size);
  const last = page.at(-1);
  const isLast = last === undefined || page.length === items.length;
  return { items: page, nextPageToken: isLast ? '' : tokenOf(keyOf(last)) };
}

/**
 * As many messages of a page as fit into one answer, but one at the least, and where the next page begins then.
 * @param messages one for each item of the page
 */
export function fitting<T, Message>(
  { items, nextPageToken }: Page<T>,
  keyOf: (item: T) => string,
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
  return { messages: messages.slice(0, over), nextPageToken: tokenOf(keyOf(last)) };
}

/** What makes the bytes of a message. */
interface Encoder<Message> {
  readonly encode: (message: Message) => { readonly finish: () => Uint8Array };
}

function tokenOf(key: string): string {
  return Buffer.from(key).toString('base64url');
}

/** How many items a page has at the most. */
export function sizeOf({ pageSize }: Pick<PageRequest, 'pageSize'>, defaultSize: number): number {
  return Math.min(pageSize === 0 ? defaultSize : pageSize, hardMax);
}

/**
 * The key of the last item of the page before; `undefined`: it is the first page.
 * @param isKey what keys look like
 * @throws ApiError REQUEST_INVALID for a token that is none
 */
export function keyBefore(
  { pageToken }: Pick<PageRequest, 'pageToken'>,
  isKey: (key: string) => boolean = () => true,
): string | undefined {
  if (pageToken === '') return undefined;
  const key = Buffer.from(pageToken, 'base64url');
  if (key.toString('base64url') === pageToken && isKey(key.toString())) return key.toString();
  throw new ApiError('REQUEST_INVALID', 'the page_token is none of ours', {
    hint: 'give back next_page_token as it came, with the same filters',
  });
}
