import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { descriptorSet } from '../../proto/generated/descriptorSet.ts';

/** Numbers of fields of google/protobuf/descriptor.proto. */
const fileOfSet = 1;
const name = 1;
const file = { package: 2, dependency: 3, message: 4, enumeration: 5, service: 6 } as const;
const message = { nested: 3, enumeration: 4 } as const;
const methodOfService = 2;

/** A file of the interface, as it is described to clients. */
interface DescribedFile {
  readonly bytes: Uint8Array;
  readonly dependencies: readonly string[];
}

/** What a server can say of the messages and services of its interface. */
export class Descriptors {
  readonly services: readonly string[];
  readonly #files = new Map<string, DescribedFile>();
  readonly #fileOfSymbol = new Map<string, string>();

  /** @param set a google.protobuf.FileDescriptorSet; that of our interface unless told */
  constructor(set: Uint8Array = Buffer.from(descriptorSet, 'base64')) {
    this.services = fieldsOf(set, fileOfSet).flatMap((bytes) => this.#add(bytes));
  }

  /** @returns the services of a file */
  #add(bytes: Uint8Array): readonly string[] {
    const fileName = textOf(bytes, name);
    const inPackage = (one: Uint8Array): string => `${textOf(bytes, file.package)}.${textOf(one, name)}`;
    this.#files.set(fileName, { bytes, dependencies: fieldsOf(bytes, file.dependency).map(asText) });
    const put = (symbol: string): void => void this.#fileOfSymbol.set(symbol, fileName);
    const putMessage = (symbol: string, one: Uint8Array): void => {
      put(symbol);
      for (const nested of fieldsOf(one, message.nested))
        putMessage(`${symbol}.${textOf(nested, name)}`, nested);
      for (const nested of fieldsOf(one, message.enumeration)) put(`${symbol}.${textOf(nested, name)}`);
    };
    for (const one of fieldsOf(bytes, file.message)) putMessage(inPackage(one), one);
    for (const one of fieldsOf(bytes, file.enumeration)) put(inPackage(one));
    return fieldsOf(bytes, file.service).map((service) => {
      const symbol = inPackage(service);
      put(symbol);
      for (const method of fieldsOf(service, methodOfService)) put(`${symbol}.${textOf(method, name)}`);
      return symbol;
    });
  }

  /** A file and all those that it needs; `undefined` for one that is not known. */
  file(fileName: string): readonly Uint8Array[] | undefined {
    if (!this.#files.has(fileName)) return undefined;
    const names = new Set([fileName]);
    // A set is gone through with what is added meanwhile.
    for (const one of names) for (const needed of this.#files.get(one)?.dependencies ?? []) names.add(needed);
    return [...names].flatMap((one) => this.#files.get(one)?.bytes ?? []);
  }

  /** The file that declares a full name, and all those that it needs. */
  fileOfSymbol(symbol: string): readonly Uint8Array[] | undefined {
    const fileName = this.#fileOfSymbol.get(symbol);
    return fileName === undefined ? undefined : this.file(fileName);
  }
}

/** All values of a field that is text, bytes or a message. */
function fieldsOf(bytes: Uint8Array, number: number): readonly Uint8Array[] {
  const reader = new BinaryReader(bytes);
  const values: Uint8Array[] = [];
  while (reader.pos < reader.len) {
    const [fieldNumber, type] = reader.tag();
    if (fieldNumber === number && type === WireType.LengthDelimited) values.push(reader.bytes());
    else reader.skip(type);
  }
  return values;
}

function asText(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString();
}

function textOf(bytes: Uint8Array, number: number): string {
  const [value] = fieldsOf(bytes, number);
  return value === undefined ? '' : asText(value);
}
