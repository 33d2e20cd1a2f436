import { ApiError } from './errors.ts';

const hardMax = 1000;

/** Which page of a list is asked for. */
export interface PageRequest {
  readonly pageSize: number;
  readonly pageToken: string;
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
): { readonly items: readonly T[]; readonly nextPageToken: string } {
  const after = keyBefore({ pageToken });
  const rest = after === undefined ? items : items.filter((item) => keyOf(item) > after);
  return pageFrom(rest, keyOf, sizeOf({ pageSize }, defaultSize));
}

/** A page, and where the next one begins. @param items behind the page before: more than a page where there is another */
export function pageFrom<T>(
  items: readonly T[],
  keyOf: (item: T) => string,
  size: number,
): { readonly items: readonly T[]; readonly nextPageToken: string } {
  const page = items.slice(0, size);
  const last = page.at(-1);
  const isLast = last === undefined || page.length === items.length;
  return { items: page, nextPageToken: isLast ? '' : Buffer.from(keyOf(last)).toString('base64url') };
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
