import t from 'tap';
import { parseConfig } from './config.ts';
import { ConfigError } from './errors.ts';

function problemsOf(text: string): string {
  try {
    parseConfig(text, 'c.yaml');
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  return '';
}

void t.test('unless told nothing is told to anybody', (t) => {
  const { metrics, alerts } = parseConfig('', 'c.yaml').config;
  t.same(metrics, { listen: null, allowRemote: false, textfile: null });
  t.same(alerts, { webhooks: [], overdueSeconds: 21_600 });
  t.end();
});

void t.test('metrics are told to this host alone, unless somebody says otherwise', (t) => {
  for (const listen of ['127.0.0.1:9777', '[::1]:9777'])
    t.equal(problemsOf(`metrics: { listen: "${listen}" }`), '', listen);
  for (const listen of ['0.0.0.0:9777', '[::]:9777', '192.0.2.1:9777']) {
    t.match(problemsOf(`metrics: { listen: "${listen}" }`), /metrics\.listen: .*allowRemote: true/, listen);
    t.equal(problemsOf(`metrics: { listen: "${listen}", allowRemote: true }`), '', listen);
  }
  t.match(problemsOf('metrics: { listen: "9777" }'), /metrics\.listen: expected an IP address and a port/);
  t.match(problemsOf('metrics: { listen: "localhost:9777" }'), /expected an IP address/);
  t.match(problemsOf('metrics: { textfile: /var/lib/node_exporter/stillpoint.txt }'), /ends in \.prom/);
  t.end();
});

void t.test('alerts go out encrypted, unless to this host or somebody says otherwise', (t) => {
  const webhook = (text: string): string => problemsOf(`alerts: { webhooks: [{ ${text} }] }`);
  t.equal(webhook('url: "https://alerts.example.net/x"'), '');
  t.equal(webhook('url: "http://127.0.0.1:8080/x"'), '');
  t.equal(webhook('url: "http://[::1]:8080/x"'), '');
  t.equal(webhook('url: "http://localhost/x"'), '');
  t.match(webhook('url: "http://alerts.example.net/x"'), /webhooks\.0\.url: expected https:\/\//);
  t.match(webhook('url: "http://127.0.0.1.example.net/x"'), /expected https:\/\//);
  t.equal(webhook('url: "http://alerts.example.net/x", allowPlainHttp: true'), '');
  for (const url of ['ftp://example.net', 'alerts.example.net', 'https://'])
    t.match(webhook(`url: "${url}"`), /expected https:\/\/HOST\/PATH/, url);
  t.match(webhook('url: "https://a.example.net", events: [nonsense]'), /expected some of backup-failed/);
  t.match(webhook('url: "https://a.example.net", events: []'), /name at least one event/);
  t.end();
});
