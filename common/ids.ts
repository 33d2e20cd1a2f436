import { v7, validate } from 'uuid';

/** A new identifier of a backup or job: UUIDv7, so that the order of ids is the order of their making. */
export function newId(): string {
  return v7();
}

/** True for the text of a UUID of any version. */
export function isUuid(text: string): boolean {
  return validate(text);
}
