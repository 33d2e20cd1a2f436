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
  const after = pageToken === '' ? undefined : keyIn(pageToken);
  const rest = after === undefined ? items : items.filter((item) => keyOf(item) > after);
  const page = rest.slice(0, Math.min(pageSize === 0 ? defaultSize : pageSize, hardMax));
  const last = page.at(-1);
  const isLast = last === undefined || page.length === rest.length;
  return { items: page, nextPageToken: isLast ? '' : Buffer.from(keyOf(last)).toString('base64url') };
}

function keyIn(token: string): string {
  const key = Buffer.from(token, 'base64url');
  if (key.toString('base64url') === token) return key.toString();
  throw new ApiError('REQUEST_INVALID', 'the page_token is none of ours', {
    hint: 'give back next_page_token as it came, with the same filters',
  });
}
