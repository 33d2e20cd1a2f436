import { DOMParser, XMLSerializer } from '@xmldom/xmldom';
import type { Document, Element, Node } from '@xmldom/xmldom';

import { DomainXmlError } from './domainXmlError.ts';

/** Largest definition accepted, in UTF-16 units; libvirt's own RPC limit for strings is 4 MiB. */
export const domainXmlSizeMax = 4 * 1024 * 1024;
/** Deepest nesting accepted; a chain of 200 backing files nests 200 deep, which is libvirt's own limit. */
export const domainXmlDepthMax = 256;

const ELEMENT_NODE = 1;
const TEXT_NODE = 3;

// Characters that XML 1.0 forbids (production 2, Char): the parser lets some of them pass.
// oxlint-disable-next-line no-control-regex
const forbiddenCharacter = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/;

/**
 * Parses a definition into a document with this root element.
 *
 * A document type is refused before anything is parsed, so no entity can be declared: neither expansion
 * ("billion laughs") nor external files are possible.
 * @throws DomainXmlError XML_INVALID
 */
export function parseDocument(
  xml: string,
  rootName: 'domain' | 'domainbackup' | 'domaincheckpoint' | 'capabilities' | 'pool' | 'cookie',
): Document {
  if (xml.length > domainXmlSizeMax) {
    throw invalid(`the definition has ${xml.length} characters, more than ${domainXmlSizeMax}`);
  }
  if (forbiddenCharacter.test(xml)) throw invalid('the definition contains a character that XML forbids');
  checkMarkup(xml);
  let document: Document;
  try {
    const parser = new DOMParser({
      locator: false,
      // The default also turns XML 1.1 line ends such as U+2028 into \n, which would change descriptions.
      normalizeLineEndings: (source) => source.replaceAll(/\r\n?/g, '\n'),
      onError: (level, message) => {
        // A character like any other, which stands in descriptions that somebody has pasted.
        if (level === 'warning' && message.startsWith('Unicode replacement character')) return;
        throw new Error(message);
      },
    });
    document = parser.parseFromString(xml, 'application/xml');
  } catch (error) {
    throw invalid('the definition is not well-formed XML', error);
  }
  const root = document.documentElement;
  if (root === null || root.localName !== rootName || root.namespaceURI !== null) {
    throw invalid(`the definition is a <${root?.tagName ?? 'nothing'}>, not a <${rootName}>`);
  }
  return document;
}

export function serializeNode(node: Node): string {
  return new XMLSerializer().serializeToString(node);
}

/** Refuses document types and deep nesting in one pass, before a recursive parser sees the text. */
function checkMarkup(xml: string): void {
  let depth = 0;
  let at = xml.indexOf('<');
  while (at !== -1) {
    let end: number;
    if (xml.startsWith('<!--', at)) {
      end = endOf(xml, '-->', at + 4);
    } else if (xml.startsWith('<![CDATA[', at)) {
      end = endOf(xml, ']]>', at + 9);
    } else if (xml.startsWith('<?', at)) {
      end = endOf(xml, '?>', at + 2);
    } else if (xml.startsWith('<!', at)) {
      throw invalid('the definition has a document type or entity declaration');
    } else {
      end = endOfTag(xml, at + 1);
      if (xml[at + 1] === '/') depth -= 1;
      else if (xml[end - 2] !== '/') depth += 1;
      if (depth > domainXmlDepthMax) throw invalid(`the definition nests deeper than ${domainXmlDepthMax}`);
    }
    at = xml.indexOf('<', end);
  }
}

function endOf(xml: string, terminator: string, from: number): number {
  const at = xml.indexOf(terminator, from);
  if (at === -1) throw invalid(`the definition ends before ${terminator}`);
  return at + terminator.length;
}

/** The position after the `>` that closes a tag; one inside an attribute's quotes does not. */
function endOfTag(xml: string, from: number): number {
  let quote = '';
  for (let at = from; at < xml.length; at += 1) {
    const character = xml[at];
    if (quote !== '') {
      if (character === quote) quote = '';
    } else if (character === '"' || character === "'") {
      quote = character;
    } else if (character === '>') {
      return at + 1;
    }
  }
  throw invalid('the definition ends inside a tag');
}

function invalid(message: string, cause?: unknown): DomainXmlError {
  return new DomainXmlError('XML_INVALID', message, {
    cause,
    hint: 'check it with: virt-xml-validate FILE domain',
  });
}

/** Children of libvirt's own vocabulary: elements of other namespaces are never looked at. */
export function children(parent: Element | undefined, name?: string): Element[] {
  const found: Element[] = [];
  for (let node = parent?.firstChild ?? null; node !== null; node = node.nextSibling) {
    if (!isElement(node) || node.namespaceURI !== null) continue;
    if (name === undefined || node.localName === name) found.push(node);
  }
  return found;
}

/** The first child at the end of a path of names, such as `child(root, 'os', 'nvram')`. */
export function child(parent: Element | undefined, ...path: readonly string[]): Element | undefined {
  let element = parent;
  for (const name of path) element = children(element, name)[0];
  return element;
}

export function text(element: Element | undefined): string | undefined {
  const content = element?.textContent?.trim();
  return content === undefined || content === '' ? undefined : content;
}

/** An attribute's value; `undefined` when it is absent or empty. */
export function attribute(element: Element | undefined, name: string): string | undefined {
  const value = element?.getAttribute(name);
  return value === null || value === undefined || value === '' ? undefined : value;
}

/** Every element below `root` in libvirt's vocabulary, in document order, `root` not included. */
export function descendants(root: Element): Element[] {
  return children(root).flatMap((element) => [element, ...descendants(element)]);
}

/** Removes an element and the indentation in front of it. */
export function removeElement(element: Element): void {
  const before = element.previousSibling;
  if (before !== null && before.nodeType === TEXT_NODE && (before.nodeValue ?? '').trim() === '') {
    before.parentNode?.removeChild(before);
  }
  element.parentNode?.removeChild(element);
}

/** Adds an empty child at the end of `parent`, before the indentation of its closing tag. */
export function appendElement(parent: Element, name: string): Element {
  const document = parent.ownerDocument;
  if (document === null) throw new Error('an element of a definition always has a document');
  const element = document.createElement(name);
  const last = parent.lastChild;
  const closingIndent =
    last !== null && last.nodeType === TEXT_NODE && (last.nodeValue ?? '').trim() === '' ? last : null;
  parent.insertBefore(element, closingIndent);
  if (closingIndent !== null) {
    parent.insertBefore(document.createTextNode(`${closingIndent.nodeValue ?? ''}  `), element);
  }
  return element;
}

export function isElement(node: Node): node is Element {
  return node.nodeType === ELEMENT_NODE;
}
