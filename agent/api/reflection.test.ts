import { connect } from 'node:http2';
import { buffer } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import t from 'tap';
import {
  ServerReflectionRequest,
  ServerReflectionResponse,
  type ServerReflectionServer,
  ServerReflectionService,
} from '../../proto/generated/grpc/reflection/v1/reflection.ts';
import { reflectionService } from './reflection.ts';

type Stream = Parameters<ServerReflectionServer['serverReflectionInfo']>[0];

const requests = 600;

/** A message as it goes over the wire: a byte of flags and its length come first. */
function framed(message: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** The messages of a body. */
function* messagesIn(body: Buffer): Generator<Buffer> {
  for (let at = 0; at < body.length; ) {
    const end = at + 5 + body.readUInt32BE(at + 1);
    yield body.subarray(at + 5, end);
    at = end;
  }
}

void t.test('who reads no answers is given no more, and gets all of them later', async (t) => {
  const server = new Server();
  const { serverReflectionInfo } = reflectionService(['stillpoint.v1.Agent']);
  const begun = Promise.withResolvers<Stream>();
  server.addService(ServerReflectionService, {
    serverReflectionInfo: (stream: Stream) => {
      serverReflectionInfo(stream);
      begun.resolve(stream);
    },
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(bound);
      else reject(error);
    });
  });
  // The client of grpc-js takes in what nobody reads: a plain stream of HTTP/2 does not.
  const session = connect(`http://127.0.0.1:${port}`);
  t.teardown(() => {
    session.destroy();
    server.forceShutdown();
  });
  const asking = session.request({
    ':method': 'POST',
    ':path': ServerReflectionService.serverReflectionInfo.path,
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  for (let index = 0; index < requests; index += 1)
    asking.write(
      framed(
        ServerReflectionRequest.encode({
          host: `${index}`,
          messageRequest: { $case: 'fileContainingSymbol', value: 'stillpoint.v1.Agent' },
        }).finish(),
      ),
    );
  asking.end();
  const { promise: stream } = begun;
  const answering = await stream;
  let most = 0;
  for (let looks = 0; looks < 25; looks += 1) {
    await delay(20);
    most = Math.max(most, answering.writableLength);
  }
  t.ok(most > 0, 'answers wait to be read');
  t.ok(most <= answering.writableHighWaterMark, `not more than a stream keeps: ${most}`);
  const answers = [...messagesIn(await buffer(asking))];
  t.same(
    answers.map((answer) => Number(ServerReflectionResponse.decode(answer).validHost)),
    Array.from({ length: requests }, (_, index) => index),
  );
});
