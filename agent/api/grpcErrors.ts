import { Metadata, type ServiceError, type status } from '@grpc/grpc-js';
import { type ErrorRecord, errorRecord } from '../../common/errors.ts';
import { Status } from '../../proto/generated/google/rpc/status.ts';
import { ErrorDetail } from '../../proto/generated/stillpoint/v1/errors.ts';
import { statusOf } from './statusCodes.ts';

const trailer = 'grpc-status-details-bin';
const typeUrl = 'type.googleapis.com/stillpoint.v1.ErrorDetail';
/*
 * Trailers are headers of HTTP/2: clients refuse those that are larger than 8 KiB together, and then show nothing of
 * the error. 6 KiB hold a message and a hint in base64, and the beginning of the message once more in base64 and as a
 * URI, in which one character of a message can take nine or twelve.
 */
const textBytesMax = 1500;
const statusBytesMax = 600;

/** How a call ends that has failed: what a handler of grpc-js gives back. */
export interface FailedCall {
  readonly code: status;
  readonly details: string;
  readonly metadata: Metadata;
}

/** An error as a message. @param about the machine or storage that it is about, where that is not the whole request */
export function errorDetail({ code, message, hint, retryable }: ErrorRecord, about = ''): ErrorDetail {
  return { code, message, hint: hint ?? '', retryable, about };
}

/** The error that a message tells of. */
export function recordOfDetail({ code, message, hint, retryable }: ErrorDetail): ErrorRecord {
  return hint === '' ? { code, message, retryable } : { code, message, hint, retryable };
}

/** The end of a call that failed with anything that was thrown; what is not ours becomes INTERNAL_ERROR. */
export function failedCall(error: unknown): FailedCall {
  const record = errorRecord(error);
  const code = statusOf(record.code);
  const hint = record.hint === undefined ? {} : { hint: clip(record.hint, textBytesMax, bytesAsUtf8) };
  const message = clip(record.message, textBytesMax, bytesAsUtf8);
  const value = ErrorDetail.encode(errorDetail({ ...record, ...hint, message })).finish();
  const details = clip(`${record.code}: ${record.message}`, statusBytesMax, bytesAsUri);
  const about = Status.encode({ code, message: details, details: [{ typeUrl, value: Buffer.from(value) }] });
  const metadata = new Metadata();
  metadata.set(trailer, Buffer.from(about.finish()));
  return { code, details, metadata };
}

/** What a service says of a call that failed; `undefined` when it was not our service, or it said nothing. */
export function detailOf({ metadata }: Pick<ServiceError, 'metadata'>): ErrorDetail | undefined {
  const [bytes] = metadata.get(trailer);
  if (!(bytes instanceof Uint8Array)) return undefined;
  const found = Status.decode(bytes).details.find((one) => one.typeUrl === typeUrl);
  return found === undefined ? undefined : ErrorDetail.decode(found.value);
}

/** The beginning of a text that can stand in a header: grpc-js encodes it as a URI, which halves of characters cannot be. */
function clip(text: string, bytesMax: number, bytesOf: (character: string) => number): string {
  const whole = text.toWellFormed();
  let bytes = 0;
  let length = 0;
  for (const character of whole) {
    bytes += bytesOf(character);
    if (bytes > bytesMax) return `${whole.slice(0, length)}…`;
    length += character.length;
  }
  return whole;
}

function bytesAsUtf8(character: string): number {
  return Buffer.byteLength(character);
}

function bytesAsUri(character: string): number {
  return encodeURI(character).length;
}
