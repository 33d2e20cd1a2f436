import { createHash } from 'node:crypto';
import type { S3 } from '@aws-sdk/client-s3';

/**
 * Has requests whose content the library makes itself carry a Content-MD5, which all servers compare, instead of the
 * newer checksums that the library would send (see docs/decisions/0016-objects-on-s3.md).
 */
export function sendContentMd5(s3: S3): void {
  s3.middlewareStack.add(
    (next, context) => async (request) => {
      if (context.commandName === 'PutObjectRetentionCommand') replaceChecksum(request.request);
      return next(request);
    },
    // After the library has put its own there, before it signs.
    { name: 'contentMd5', step: 'build', priority: 'low' },
  );
}

function replaceChecksum(request: unknown): void {
  if (!isTextRequest(request)) return;
  const { headers, body } = request;
  for (const name of Object.keys(headers)) if (/^x-amz-(sdk-)?checksum-/i.test(name)) delete headers[name];
  headers['content-md5'] = createHash('md5').update(body).digest('base64');
}

function isTextRequest(
  request: unknown,
): request is { readonly headers: Record<string, string>; readonly body: string } {
  return (
    typeof request === 'object' &&
    request !== null &&
    'headers' in request &&
    typeof request.headers === 'object' &&
    'body' in request &&
    typeof request.body === 'string'
  );
}
