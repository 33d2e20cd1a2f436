import { alertEvents } from '../../config/observability.ts';
import type { AlertEvent } from '../../config/observability.ts';
import { type Alert, bodyOf } from './alert.ts';
import { metrics } from './metrics.ts';

/** When each alert is sent. */
const meanings: Readonly<Record<AlertEvent, string>> = {
  'backup-failed': 'a scheduled backup failed and is not tried again; over with the next one that succeeds',
  'copy-failed':
    'the last copy that `replicate:` of a policy asks for failed; the next backup tries it again; over when a copy is there',
  'job-parked': 'a job was left with work that needs somebody',
  'machine-overdue': 'a backup has been due by its schedule for `alerts.overdueSeconds`, whatever the reason',
  'storage-full':
    '`warnPercent` of its quota or of its file system is reached (`warning`), or nothing goes in any more (`critical`)',
  'storage-unusable': 'a storage could not be used when it was looked at, and a minute later',
  'verification-failed':
    'the last verification of a backup found it not good; over when it is deleted, or verified and good',
  'libvirt-unreachable': 'libvirt has not answered for a minute',
  'policies-unusable':
    'some of the policies that a controller has pushed cannot be used: what is kept of them is damaged, or names a storage that is gone',
};

const example: Alert = {
  id: '01a1ff90-0e37-7a51-9d0b-1c6f4c1a7a01',
  key: 'backup-failed:6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01',
  event: 'backup-failed',
  severity: 'critical',
  machine: { uuid: '6f1d1a0e-3f0c-4a52-9d0b-1c6f4c1a7a01', name: 'web-1' },
  storage: null,
  jobId: '01a1ff90-0e30-7d40-8a11-5f6f4c1a7a02',
  message: 'the scheduled backup of web-1 failed, and is not tried again: the storage local is full',
  hint: 'stillpoint prune --storage local --dry-run',
  startedAtMs: Date.UTC(2026, 10, 22, 2, 10),
};

/** docs/METRICS.md, made of what the program itself uses; a test says when the page is not what this gives. */
export function metricsPage(): string {
  return `${[...introduction(), ...metricTable(), ...alertSection()].join('\n')}\n`;
}

function introduction(): readonly string[] {
  return [
    '# Metrics and alerts',
    '',
    'Made from the program by `scripts/with-node node scripts/metrics.ts`; a test compares the two.',
    '',
    '## Metrics',
    '',
    'The service tells them over HTTP (`metrics.listen`: `GET /metrics`, nothing else, without a password, on the',
    "loopback unless `allowRemote: true`), or in a file for node_exporter's textfile collector (`metrics.textfile`, anew",
    'once a minute). `stillpoint status` shows the same to people, also where no service runs.',
    '',
    'Figures about jobs are of the moment of the scrape. Machines are asked of libvirt once a minute; storages are looked',
    'at once in 15 minutes, and never because of a scrape. What came into a storage since is known from the journal, and',
    'so is, right after a start, the last success of each machine. A figure that is not known is missing; a storage that',
    'does not answer keeps the figures of the look before, and `stillpoint_storage_up` is 0. Instants are in seconds since',
    '1970. [examples/stillpoint-alerts.yaml](examples/stillpoint-alerts.yaml) has rules for Prometheus.',
    '',
  ];
}

function metricTable(): readonly string[] {
  const rows = metrics.map(({ name, type, labels, help }) => {
    const labelled = labels.length === 0 ? '' : `{${labels.join(', ')}}`;
    return `| \`${name}${labelled}\` | ${type} | ${help.replaceAll('|', String.raw`\|`)} |`;
  });
  return ['| metric | | |', '|---|---|---|', ...rows, ''];
}

function alertSection(): readonly string[] {
  const body: unknown = JSON.parse(
    bodyOf({ status: 'firing', alert: example, atMs: example.startedAtMs }, 'node-1'),
  );
  return [
    '## Alerts by webhook',
    '',
    'Each of `alerts.webhooks` is sent a POST with a JSON body when something begins to be wrong, once more should it',
    'become worse, and when it is over. The service looks once a minute.',
    '',
    '| event | when |',
    '|---|---|',
    ...alertEvents.map((event) => `| \`${event}\` | ${meanings[event]} |`),
    '',
    '```json',
    ...JSON.stringify(body, null, 2).split('\n'),
    '```',
    '',
    '- `status` is `firing` or `resolved`; `endedAt` is set for the latter. `id` is the same for all that is sent about',
    '  one alert (header `Stillpoint-Alert`, too). A request can come twice, when its answer was lost: `id`, `status` and',
    '  `severity` tell. `version` changes only when a key changes its meaning; new keys may come at any time.',
    '- With a `secretFile` there is a header `Stillpoint-Signature: t=SECONDS,v1=HEX`: the HMAC-SHA-256, with what stands',
    '  in that file (without a line end), of `SECONDS`, a full stop and the body as it was sent. Refuse what is older than',
    '  some minutes.',
    '- Any answer of 2xx means that it was taken. Everything else (a redirect too, which is not followed) and no answer in',
    '  10 s is tried again, after 30 s and then twice as long each time, up to an hour, for three days. Up to 500 requests',
    '  wait for each webhook, in `alerts.json` beside the journal, over restarts; the oldest go first when there are more.',
    '  One webhook that does not answer holds up no other.',
    '- Certificates are always checked. A proxy is not used.',
  ];
}
