import { StillpointError } from '../../common/errors.ts';

/** Closed set of what can be wrong with a definition. */
export type DomainXmlErrorCode =
  /** Not well-formed, not a `<domain>`, larger or deeper than allowed, or with a document type. */
  | 'XML_INVALID'
  /** Well-formed, but what was asked for is not in it or has a form that we do not know. */
  | 'XML_ELEMENT_MISSING'
  | 'XML_VOLUME_NOT_FOUND'
  | 'XML_INTERFACE_NOT_FOUND'
  /** The volume has no single file, so that its path cannot be replaced. */
  | 'XML_VOLUME_NOT_A_FILE'
  /** The definition does not say what the volume's image stands on (only a live one does). */
  | 'XML_CHAIN_UNKNOWN'
  /** A value that would make the definition invalid. */
  | 'XML_VALUE_INVALID';

/** An error of the domain XML model. */
export class DomainXmlError extends StillpointError<DomainXmlErrorCode> {
  constructor(
    code: DomainXmlErrorCode,
    message: string,
    options: { readonly hint?: string | undefined; readonly cause?: unknown } = {},
  ) {
    super(message, { code, hint: options.hint, cause: options.cause });
  }
}
