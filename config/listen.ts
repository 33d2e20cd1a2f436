import * as z from 'zod';
import { parseHostPort } from '../common/hostPort.ts';

/** Where the API of the agent listens for the controller of its host. */
export const listen = z
  .string('expected HOST:PORT, such as "0.0.0.0:7420"')
  .superRefine((text, context) => {
    try {
      parseHostPort(text);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
    }
  })
  .nullable()
  .default(null)
  .describe(
    'Where the controller of this host can call the agent: HOST:PORT, with TLS 1.3 and certificates of both sides, once the host has joined (`stillpoint agent join`). null: nowhere on the network.',
  );
