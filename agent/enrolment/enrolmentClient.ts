import { type ChannelCredentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { pemOf } from '../../common/tls/material.ts';
import {
  EnrolmentServiceClient as GeneratedClient,
  type EnrolResponse,
  type HostIdentity,
  type IssuedCertificate,
  type ListRevokedResponse,
  type RenewResponse,
} from '../../proto/generated/stillpoint/v1/enrolment.ts';
import { IdentityError } from '../identity/errors.ts';
import { controllerChannelOptions } from './controllerChannel.ts';
import { EnrolmentError } from './errors.ts';

/** What a controller has given out. Nothing says yet that it fits. */
export interface Issued {
  /** PEM. */
  readonly certificate: string;
  /** PEM. */
  readonly authorities: string;
  readonly controllerName: string;
}

const deadlineMs = 30_000;

type Done<Response> = (error: ServiceError | null, response: Response) => void;

/** Asks a controller for certificates. Errors: EnrolmentError; IdentityError CERTIFICATE_INVALID for what is none. */
export class EnrolmentClient {
  readonly #address: string;
  readonly #client: GeneratedClient;

  /** @param address `HOST:PORT` */
  constructor(address: string, credentials: ChannelCredentials) {
    this.#address = address;
    this.#client = new GeneratedClient(address, credentials, controllerChannelOptions);
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  async enrol(token: string, certificateRequest: Uint8Array, host: HostIdentity): Promise<Issued> {
    const request = { token, certificateRequest: Buffer.from(certificateRequest), host };
    const { issued } = await this.#ask<EnrolResponse>((done) =>
      this.#client.enrol(request, new Metadata(), inTime(), done),
    );
    return read(issued);
  }

  async renew(certificateRequest: Uint8Array): Promise<Issued> {
    const request = { certificateRequest: Buffer.from(certificateRequest) };
    const { issued } = await this.#ask<RenewResponse>((done) =>
      this.#client.renew(request, new Metadata(), inTime(), done),
    );
    return read(issued);
  }

  async listRevoked(): Promise<readonly string[]> {
    const { serials } = await this.#ask<ListRevokedResponse>((done) =>
      this.#client.listRevoked({}, new Metadata(), inTime(), done),
    );
    return serials;
  }

  async #ask<Response>(begin: (done: Done<Response>) => void): Promise<Response> {
    try {
      return await new Promise<Response>((resolve, reject) =>
        begin((error, response) => (error === null ? resolve(response) : reject(error))),
      );
    } catch (error) {
      throw this.#toldBy(error);
    }
  }

  #toldBy(error: unknown): unknown {
    if (!(error instanceof Error) || !('code' in error) || !('details' in error)) return error;
    const { code, details } = error;
    if (code === status.UNAUTHENTICATED)
      return new EnrolmentError('TOKEN_REFUSED', `the controller refuses: ${String(details)}`, {
        cause: error,
        hint: 'get a new token from the controller',
      });
    if (code === status.ALREADY_EXISTS)
      return new EnrolmentError('HOST_ALREADY_ENROLLED', `the controller refuses: ${String(details)}`, {
        cause: error,
        hint: 'to join this host anew, get a token that is for it; if this host is a copy of another one: rm /etc/machine-id && systemd-machine-id-setup, then join again',
      });
    if (code === status.UNAVAILABLE || code === status.DEADLINE_EXCEEDED)
      return new EnrolmentError(
        'CONTROLLER_UNREACHABLE',
        `the controller at ${this.#address} does not answer: ${String(details)}`,
        {
          cause: error,
          retryable: true,
          hint: 'if it runs, its log says whether it refuses the certificate of this host; the same command can be repeated',
        },
      );
    return new EnrolmentError('ENROLMENT_REFUSED', `the controller refuses: ${String(details)}`, {
      cause: error,
      hint: 'its log says more',
    });
  }
}

function inTime(): { readonly deadline: number } {
  return { deadline: Date.now() + deadlineMs };
}

function read(issued: IssuedCertificate | undefined): Issued {
  try {
    if (issued === undefined) throw new Error('the answer holds none');
    return {
      certificate: pemOf([issued.certificate]),
      authorities: pemOf(issued.authorities),
      controllerName: issued.controllerName,
    };
  } catch (error) {
    throw new IdentityError('CERTIFICATE_INVALID', 'what the controller has given out is no certificate', {
      cause: error,
    });
  }
}
