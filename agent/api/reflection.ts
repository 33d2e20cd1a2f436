import { status } from '@grpc/grpc-js';
import {
  type ServerReflectionRequest,
  type ServerReflectionResponse,
  type ServerReflectionServer,
} from '../../proto/generated/grpc/reflection/v1/reflection.ts';
import { Descriptors } from './descriptors.ts';

/**
 * The reflection service: which services there are, and how their messages are made up.
 * @param served the services of the server
 */
export function reflectionService(served: readonly string[]): ServerReflectionServer {
  let descriptors: Descriptors | undefined;
  return {
    serverReflectionInfo: (stream) => {
      // Few ask: what it takes to answer is made for the first one.
      descriptors ??= new Descriptors();
      const described = descriptors;
      stream.on('data', (request: ServerReflectionRequest) => {
        const isRead = stream.write({
          validHost: request.host,
          originalRequest: request,
          ...answer(described, served, request),
        });
        if (isRead) return;
        // Answers are much longer than requests: who reads none may not ask for more.
        stream.pause();
        stream.once('drain', () => stream.resume());
      });
      stream.on('end', () => stream.end());
    },
  };
}

function answer(
  descriptors: Descriptors,
  served: readonly string[],
  { messageRequest }: ServerReflectionRequest,
): Pick<ServerReflectionResponse, 'messageResponse'> {
  switch (messageRequest?.$case) {
    case 'listServices': {
      const service = descriptors.services.filter((name) => served.includes(name)).map((name) => ({ name }));
      return { messageResponse: { $case: 'listServicesResponse', value: { service } } };
    }
    case 'fileByFilename':
      return files(descriptors.file(messageRequest.value), messageRequest.value);
    case 'fileContainingSymbol':
      return files(descriptors.fileOfSymbol(messageRequest.value), messageRequest.value);
    case 'fileContainingExtension':
    case 'allExtensionNumbersOfType':
      return refusal(status.NOT_FOUND, 'there are no extensions');
    case undefined:
    default:
      return refusal(status.INVALID_ARGUMENT, 'nothing is asked for');
  }
}

function files(
  found: readonly Uint8Array[] | undefined,
  what: string,
): Pick<ServerReflectionResponse, 'messageResponse'> {
  if (found === undefined) return refusal(status.NOT_FOUND, `there is no ${what}`);
  const fileDescriptorProto = found.map((bytes) => Buffer.from(bytes));
  return { messageResponse: { $case: 'fileDescriptorResponse', value: { fileDescriptorProto } } };
}

function refusal(errorCode: status, errorMessage: string): Pick<ServerReflectionResponse, 'messageResponse'> {
  return { messageResponse: { $case: 'errorResponse', value: { errorCode, errorMessage } } };
}
