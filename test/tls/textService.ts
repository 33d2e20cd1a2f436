import { once } from 'node:events';
import {
  type ChannelCredentials,
  Client,
  type ClientReadableStream,
  Metadata,
  type sendUnaryData,
  Server,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceDefinition,
} from '@grpc/grpc-js';
import type { Test } from 'tap';
import { peerOfCall } from '../../common/tls/peerOfCall.ts';
import { formatPeerName } from '../../common/tls/peerName.ts';

const text = {
  requestSerialize: (value: string) => Buffer.from(value),
  requestDeserialize: (bytes: Buffer) => bytes.toString(),
  responseSerialize: (value: string) => Buffer.from(value),
  responseDeserialize: (bytes: Buffer) => bytes.toString(),
};
const whoAmI = { path: '/test.Api/WhoAmI', requestStream: false, responseStream: false, ...text } as const;
const follow = { path: '/test.Api/Follow', requestStream: false, responseStream: true, ...text } as const;
const service = { whoAmI, follow } satisfies ServiceDefinition;

/** A server for tests: one call says who makes it, the other is a stream to which the test writes. */
export class TextService {
  readonly server = new Server();
  readonly streams: ServerWritableStream<string, string>[] = [];

  constructor() {
    this.server.addService(service, {
      whoAmI: (call: ServerUnaryCall<string, string>, done: sendUnaryData<string>) => {
        const peer = peerOfCall(call);
        done(null, peer === null ? 'nobody' : formatPeerName(peer));
      },
      follow: (call: ServerWritableStream<string, string>) => {
        this.streams.push(call);
        call.write('begun');
      },
    });
  }
}

/** A client of it, which has a connection of its own. */
export class TextClient {
  readonly #client: Client;

  constructor(t: Test, port: number | null, credentials: ChannelCredentials) {
    const options = { 'grpc.ssl_target_name_override': 'test.invalid', 'grpc.use_local_subchannel_pool': 1 };
    this.#client = new Client(`127.0.0.1:${port}`, credentials, options);
    t.teardown(() => this.#client.close());
  }

  /** Who one is to the server. Rejects with ServiceError. */
  async whoAmI(): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        whoAmI.path,
        text.requestSerialize,
        text.responseDeserialize,
        'who?',
        new Metadata(),
        { deadline: Date.now() + 10_000 },
        (error, answer) => (error === null ? resolve(answer ?? '') : reject(error)),
      );
    });
  }

  /** A stream that has begun. */
  async follow(): Promise<ClientReadableStream<string>> {
    const stream = this.#client.makeServerStreamRequest(
      follow.path,
      text.requestSerialize,
      text.responseDeserialize,
      'all',
    );
    await once(stream, 'data');
    return stream;
  }
}
