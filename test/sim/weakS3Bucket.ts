import { createHash } from 'node:crypto';
import { type ObjectVersion, ObjectVersions } from './objectVersions.ts';

/** A request to the bucket, after the address. */
export interface S3Request {
  readonly method: string;
  readonly key: string;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: Buffer;
}

export interface S3Answer {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Buffer;
}

export interface Content {
  readonly bytes: Buffer;
  /** Headers that come back with it. */
  readonly metadata: Readonly<Record<string, string>>;
}

interface Upload {
  readonly key: string;
  readonly metadata: Content['metadata'];
  readonly retainUntil: Date | null;
  readonly parts: Map<number, Buffer>;
  readonly begunAt: Date;
}

/** What a listing that is stale does not know yet: objects of so many acts. */
const staleActs = 40;

/** A bucket in memory, as far as the protocol goes that we use. */
export class WeakS3Bucket {
  readonly objects = new Map<string, Content & { readonly createdAtAct: number }>();
  readonly uploads = new Map<string, Upload>();
  /** What it does with `If-None-Match: *`. */
  readonly conditions: 'honoured' | 'ignored' | 'refused';
  readonly versions: ObjectVersions<Content>;
  #acts = 0;

  /** @param isLocking it has object lock; otherwise it ignores what it is told about it */
  constructor(conditions: 'honoured' | 'ignored' | 'refused', isLocking: boolean) {
    this.conditions = conditions;
    this.versions = new ObjectVersions(isLocking);
  }

  /** Puts there what another program has stored. */
  plant(key: string, bytes: Buffer): void {
    this.#keep(key, { bytes, metadata: {} }, null);
  }

  /** @param isStale listings do not show what is new */
  act(request: S3Request, isStale: boolean): S3Answer {
    this.#acts++;
    const { method, key, query } = request;
    if (query.has('versions')) return listVersions(this.versions, query);
    if (key === '') return query.has('uploads') ? this.#listUploads(query) : this.#list(query, isStale);
    if (query.has('retention')) return this.#retain(request);
    if (query.has('uploads')) return this.#beginUpload(request);
    if (query.has('uploadId')) return this.#actOnUpload(request, query.get('uploadId') ?? '');
    if (method === 'PUT') return this.#put(request);
    if (method === 'DELETE') {
      return this.#delete(key, query.get('versionId'));
    }
    return this.#get(request);
  }

  #put(request: S3Request): S3Answer {
    const refused = this.#refusal(request) ?? this.#unmetCondition(request);
    if (refused !== null) return refused;
    this.#keep(request.key, { bytes: request.body, metadata: metadataOf(request) }, retainUntilOf(request));
    return { status: 200, headers: { etag: etagOf(request.body) } };
  }

  #keep(key: string, content: Content, retainUntil: Date | null): void {
    this.versions.add(key, content, retainUntil);
    this.objects.set(key, { ...content, createdAtAct: this.#acts });
  }

  #delete(key: string, versionId: string | null): S3Answer {
    if (versionId === null) this.versions.remove(key);
    else if (!this.versions.removeVersion(key, versionId)) return s3Error(403, 'AccessDenied');
    const content = this.versions.of(key)[0]?.content ?? null;
    if (content === null) this.objects.delete(key);
    else this.objects.set(key, { ...content, createdAtAct: this.#acts });
    return { status: 204 };
  }

  #retain(request: S3Request): S3Answer {
    const refused = this.#refusal(request);
    if (refused !== null) return refused;
    if (!this.objects.has(request.key)) return s3Error(404, 'NoSuchKey');
    const [, until = ''] = /<RetainUntilDate>([^<]+)</.exec(String(request.body)) ?? [];
    const isDone = this.versions.retain(request.key, new Date(until));
    return isDone ? { status: 200 } : s3Error(403, 'AccessDenied');
  }

  #refusal({ headers, body }: S3Request): S3Answer | null {
    if (headers['content-length'] === undefined) return s3Error(411, 'MissingContentLength');
    const digest = createHash('md5').update(body).digest('base64');
    return headers['content-md5'] === digest ? null : s3Error(400, 'BadDigest');
  }

  #unmetCondition({ key, headers }: S3Request): S3Answer | null {
    if (headers['if-none-match'] === undefined || this.conditions === 'ignored') return null;
    if (this.conditions === 'refused') return s3Error(501, 'NotImplemented');
    return this.objects.has(key) ? s3Error(412, 'PreconditionFailed') : null;
  }

  #get({ method, key, headers, query }: S3Request): S3Answer {
    const versionId = query.get('versionId');
    const version = this.versions.find(key, versionId);
    const content = versionId === null ? this.objects.get(key) : version?.content;
    if (content == null || version === undefined) return s3Error(404, 'NoSuchKey');
    const { bytes, metadata } = content;
    const own = { ...metadata, etag: etagOf(bytes), ...this.#lockHeaders(version) };
    if (method === 'HEAD')
      return { status: 200, headers: { ...own, 'content-length': String(bytes.length) } };
    const match = /^bytes=(\d+)-(\d+)$/.exec(headers['range'] ?? '');
    if (match === null) return { status: 200, headers: own, body: bytes };
    const [first = 0, last = 0] = match.slice(1).map(Number);
    const piece = bytes.subarray(first, last + 1);
    if (piece.length === 0) return s3Error(416, 'InvalidRange');
    const place = `bytes ${first}-${first + piece.length - 1}/${bytes.length}`;
    return { status: 206, headers: { ...own, 'content-range': place }, body: piece };
  }

  #lockHeaders({ versionId, retainedUntil }: ObjectVersion<Content>): Readonly<Record<string, string>> {
    if (!this.versions.isLocking) return {};
    if (retainedUntil === null) return { 'x-amz-version-id': versionId };
    return {
      'x-amz-version-id': versionId,
      'x-amz-object-lock-mode': 'COMPLIANCE',
      'x-amz-object-lock-retain-until-date': retainedUntil.toISOString(),
    };
  }

  #list(query: URLSearchParams, isStale: boolean): S3Answer {
    const prefix = query.get('prefix') ?? '';
    const after = query.get('continuation-token') ?? '';
    const isKnown = (key: string): boolean =>
      !isStale || this.#acts - (this.objects.get(key)?.createdAtAct ?? 0) > staleActs;
    const keys = [...this.objects.keys()].filter(
      (key) => key.startsWith(prefix) && key > after && isKnown(key),
    );
    const page = keys.toSorted().slice(0, Number(query.get('max-keys') ?? 1000));
    const isTruncated = page.length < keys.length;
    return xml(
      'ListBucketResult',
      element('IsTruncated', String(isTruncated)),
      element('KeyCount', String(page.length)),
      isTruncated ? element('NextContinuationToken', page.at(-1) ?? '') : '',
      ...page.map((key) =>
        element(
          'Contents',
          element('Key', key),
          element('Size', String(this.objects.get(key)?.bytes.length)),
        ),
      ),
    );
  }

  #beginUpload(request: S3Request): S3Answer {
    const id = `upload-${this.#acts}`;
    const metadata = metadataOf(request);
    const retainUntil = retainUntilOf(request);
    this.uploads.set(id, { key: request.key, metadata, retainUntil, parts: new Map(), begunAt: new Date() });
    return xml('InitiateMultipartUploadResult', element('UploadId', id));
  }

  #actOnUpload(request: S3Request, id: string): S3Answer {
    const upload = this.uploads.get(id);
    if (upload?.key !== request.key) return s3Error(404, 'NoSuchUpload');
    if (request.method === 'DELETE') {
      this.uploads.delete(id);
      return { status: 204 };
    }
    if (request.method === 'PUT') {
      const refused = this.#refusal(request);
      if (refused !== null) return refused;
      upload.parts.set(Number(request.query.get('partNumber')), request.body);
      return { status: 200, headers: { etag: etagOf(request.body) } };
    }
    return this.#complete(request, id, upload);
  }

  #complete(request: S3Request, id: string, upload: Upload): S3Answer {
    const unmet = this.#unmetCondition(request);
    if (unmet !== null) return unmet;
    const named = [...String(request.body).matchAll(/<PartNumber>(\d+)<\/PartNumber>/g)].map(([, number]) =>
      upload.parts.get(Number(number)),
    );
    const parts = named.filter((part) => part !== undefined);
    if (parts.length !== named.length || parts.length === 0) return s3Error(400, 'InvalidPart');
    const bytes = Buffer.concat(parts);
    this.#keep(upload.key, { bytes, metadata: upload.metadata }, upload.retainUntil);
    this.uploads.delete(id);
    return xml('CompleteMultipartUploadResult', element('ETag', etagOf(bytes)));
  }

  #listUploads(query: URLSearchParams): S3Answer {
    const prefix = query.get('prefix') ?? '';
    const found = [...this.uploads].filter(([, { key }]) => key.startsWith(prefix));
    return xml(
      'ListMultipartUploadsResult',
      element('IsTruncated', 'false'),
      ...found.map(([id, { key, begunAt }]) =>
        element(
          'Upload',
          element('Key', key),
          element('UploadId', id),
          element('Initiated', begunAt.toISOString()),
        ),
      ),
    );
  }
}

/** In pages, the versions of each key newest first. */
function listVersions(versions: ObjectVersions<Content>, query: URLSearchParams): S3Answer {
  const prefix = query.get('prefix') ?? '';
  const all = versions.keys
    .filter((key) => key.startsWith(prefix))
    .flatMap((key) => versions.of(key).map((version, place) => ({ key, version, isLatest: place === 0 })));
  const last = all.findIndex(
    ({ key, version }) =>
      key === query.get('key-marker') && version.versionId === query.get('version-id-marker'),
  );
  const page = all.slice(last + 1, last + 1 + Number(query.get('max-keys') ?? 1000));
  const end = page.at(-1);
  const isTruncated = end !== undefined && end !== all.at(-1);
  return xml(
    'ListVersionsResult',
    element('IsTruncated', String(isTruncated)),
    isTruncated ? element('NextKeyMarker', end.key) : '',
    isTruncated ? element('NextVersionIdMarker', end.version.versionId) : '',
    ...page.map(({ key, version, isLatest }) => versionElement(key, version, isLatest)),
  );
}

function versionElement(key: string, version: ObjectVersion<Content>, isLatest: boolean): string {
  const { versionId, content, changedAt } = version;
  const about = [
    element('Key', key),
    element('VersionId', versionId),
    element('IsLatest', String(isLatest)),
    element('LastModified', changedAt.toISOString()),
  ];
  if (content === null) return element('DeleteMarker', ...about);
  const { bytes } = content;
  return element('Version', ...about, element('ETag', etagOf(bytes)), element('Size', String(bytes.length)));
}

/** What a request says about the retention of what it stores. */
function retainUntilOf({ headers }: S3Request): Date | null {
  const until = headers['x-amz-object-lock-retain-until-date'];
  return until === undefined ? null : new Date(until);
}

export function s3Error(status: number, code: string, message = 'because'): S3Answer {
  return { ...xml('Error', element('Code', code), element('Message', message)), status };
}

function xml(root: string, ...content: readonly string[]): S3Answer {
  const body = `<?xml version="1.0" encoding="UTF-8"?>\n${element(root, ...content)}`;
  return { status: 200, headers: { 'content-type': 'application/xml' }, body };
}

/** Texts are keys, numbers and dates: none needs to be escaped. */
function element(name: string, ...content: readonly string[]): string {
  return `<${name}>${content.join('')}</${name}>`;
}

function etagOf(bytes: Buffer): string {
  return `"${createHash('md5').update(bytes).digest('hex')}"`;
}

function metadataOf({ headers }: S3Request): Readonly<Record<string, string>> {
  const entries = Object.entries(headers).filter(([name]) => name.startsWith('x-amz-meta-'));
  return Object.fromEntries(entries.map(([name, value]) => [name, value ?? '']));
}
