/** Writes docs/METRICS.md, the page about metrics and alerts, from what the program uses. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { metricsPage } from '../agent/observe/metricsPage.ts';

await writeFile(join(import.meta.dirname, '..', 'docs', 'METRICS.md'), metricsPage());
