/** Writes config/schema.json, the JSON schema of the configuration, from the schema that the code uses. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { configSchema } from '../config/schema.ts';

const schema = z.toJSONSchema(configSchema, { io: 'input' });
const file = join(import.meta.dirname, '..', 'config', 'schema.json');
await writeFile(file, `${JSON.stringify(schema, null, 2)}\n`);
