import { readFile } from 'node:fs/promises';

import { DOMParser } from '@xmldom/xmldom';
import type { Node } from '@xmldom/xmldom';
import * as fc from 'fast-check';
import t from 'tap';

import { isElement } from './domainDom.ts';
import { DomainXml } from './domainXml.ts';

const fixtures = ['web-1.live', 'web-1.persistent', 'web-1.migratable', 'render-7.persistent'] as const;

function fixture(name: (typeof fixtures)[number]): Promise<string> {
  return readFile(new URL(`../../test/fixtures/xml/${name}.xml`, import.meta.url), 'utf8');
}

/** What a document says, one line for each node with its path; attribute order and quotes say nothing. */
function canonical(xml: string): string[] {
  const lines: string[] = [];
  const visit = (node: Node, path: string): void => {
    if (isElement(node)) {
      const name = `${path}/{${node.namespaceURI ?? ''}}${node.tagName}`;
      const attributes = [...node.attributes].map((a) => `${a.name}=${JSON.stringify(a.value)}`).toSorted();
      lines.push(`${name} ${attributes.join(' ')}`);
      for (let next = node.firstChild; next !== null; next = next.nextSibling) visit(next, name);
    } else if (node.nodeType !== 3 || (node.nodeValue ?? '').trim() !== '') {
      lines.push(`${path}#${node.nodeType} ${JSON.stringify(node.nodeValue)}`);
    }
  };
  const document = new DOMParser({ normalizeLineEndings: (text) => text }).parseFromString(xml, 'text/xml');
  for (let next = document.firstChild; next !== null; next = next.nextSibling) visit(next, '');
  return lines;
}

/** Lines that only one of the two says, with - and + in front. */
function difference(before: string, after: string): string[] {
  const [left, right] = [canonical(before), canonical(after)];
  const less = (from: string[], minus: string[]): string[] => {
    const rest = [...minus];
    return from.filter((line) => {
      const at = rest.indexOf(line);
      if (at !== -1) rest.splice(at, 1);
      return at === -1;
    });
  };
  return [...less(left, right).map((line) => `-${line}`), ...less(right, left).map((line) => `+${line}`)];
}

function changed(before: string, mutate: (xml: DomainXml) => void): string[] {
  const xml = DomainXml.parse(before);
  mutate(xml);
  return difference(before, xml.toString());
}

void t.test('what libvirt printed is written back with the same meaning and the same text', async (t) => {
  for (const name of fixtures) {
    const xml = await fixture(name);
    const written = DomainXml.parse(xml).toString();
    t.same(difference(xml, written), [], name);
    t.equal(written.replaceAll('"', "'"), xml.trimEnd().replaceAll('"', "'"), `${name}: only quotes differ`);
    t.equal(DomainXml.parse(written).toString(), written, `${name}: a second time changes nothing`);
  }
});

void t.test('a live definition reads as plain data', async (t) => {
  const xml = DomainXml.parse(await fixture('web-1.live'));
  t.match(xml, { name: 'web-1', uuid: '4e9f2d51-6b1a-4c57-8b19-0f3d1a2b3c4d', type: 'qemu', tpm: undefined });
  t.equal(xml.memoryBytes, 96 * 1024 * 1024);
  t.same([xml.nvram, xml.hostDevices], [undefined, []]);
  t.same(xml.liveChain('vda'), [
    '/srv/images/web-1-vda.qcow2',
    '/srv/images/web-1-vda.base',
    '/srv/images/template.qcow2',
  ]);
  t.same(xml.liveChain('vdb'), ['/srv/images/web-1-vdb.raw']);
  t.same(
    xml.volumes.map((v) => [v.target, v.device, v.sourceKind, v.format, v.readOnly, v.shareable]),
    [
      ['vda', 'disk', 'file', 'qcow2', false, false],
      ['vdb', 'disk', 'file', 'raw', false, true],
      ['hda', 'cdrom', 'none', undefined, true, false],
      ['fda', 'floppy', 'none', undefined, false, false],
    ],
  );
  t.match(xml.volume('vda'), {
    bus: 'virtio',
    serial: 'SHOP-0001',
    cache: 'none',
    index: 4,
    encrypted: false,
  });
  t.same(xml.interfaces[1], {
    mac: '52:54:00:11:22:34',
    type: 'ethernet',
    source: undefined,
    model: 'e1000',
    target: 'vnet0',
    linkState: 'down',
  });
  t.match(xml.metadata, /<shop:disk xmlns:shop="urn:example:shop" owner="a&quot;b">/);
});

void t.test(
  'a definition that does not say what an image stands on is told from one where the chain ends',
  async (t) => {
    const xml = DomainXml.parse(await fixture('web-1.migratable'));
    t.equal(xml.volume('vda').backingChain, undefined);
    t.same(xml.volume('vdb').backingChain, []);
    t.throws(() => xml.liveChain('vda'), { code: 'XML_CHAIN_UNKNOWN' });
    t.throws(() => xml.liveChain('vdz'), { code: 'XML_VOLUME_NOT_FOUND' });
  },
);

void t.test(
  'a device, a network volume and a pool volume become files, and lose what they were',
  async (t) => {
    const xml = DomainXml.parse(await fixture('render-7.persistent'));
    for (const target of ['sda', 'vda', 'vdb']) {
      xml.setVolumePath(target, `/restored/${target}`);
      t.match(xml.volume(target), {
        sourceKind: 'file',
        path: `/restored/${target}`,
        pool: undefined,
        address: undefined,
      });
    }
    t.notMatch(xml.toString(), /192\.0\.2\.7|vg0|pool=/, 'no address is left');
    xml.setVolumePath('vdd', '/restored/vdd');
    t.equal(xml.volume('vdd').encrypted, true, 'an encrypted one stays so');
  },
);

void t.test('every kind of disk and every device of the host is recognised', async (t) => {
  const xml = DomainXml.parse(await fixture('render-7.persistent'));
  t.equal(xml.memoryBytes, 2 * 1024 ** 3);
  t.equal(xml.nvram, '/var/lib/libvirt/qemu/nvram/render-7_VARS.fd');
  t.same(Object.fromEntries(xml.volumes.map((v) => [v.target, [v.sourceKind, v.path]])), {
    sda: ['block', '/dev/vg0/render-7'],
    sdb: ['file', '/srv/iso/install.iso'],
    vda: ['network', undefined],
    vdb: ['volume', undefined],
    vdc: ['vhostuser', undefined],
    vdd: ['file', '/srv/images/render-7 & scratch.qcow2'],
    vde: ['file', '/srv/images/render-7.qcow2'],
    fda: ['dir', '/srv/floppy'],
  });
  t.match(xml.volume('vdd'), { transient: true, encrypted: true });
  t.same(xml.volume('vde').backingChain, [{ path: '/srv/images/base.qcow2', format: 'qcow2' }]);
  t.same(xml.hostDevices.map((device) => device.kind).toSorted(), [
    'cpu-feature',
    'filesystem',
    'gpu-3d',
    'hostdev',
    'hostdev',
    'input-passthrough',
    'interface-hostdev',
    'shmem',
    'vhost-user',
  ]);
  t.match(xml.hostDevices[0]?.description, /^pci device of the host domain=0x0000 bus=0x06/);
});

void t.test('NVRAM is found in all its forms, and replaced in the same form', (t) => {
  const withOs = (os: string): DomainXml => DomainXml.parse(`<domain><os>${os}</os></domain>`);
  t.equal(withOs('<nvram> /a/b </nvram>').nvram, '/a/b');
  t.equal(withOs("<nvram type='file'><source file='/a/c'/></nvram>").nvram, '/a/c');
  t.equal(withOs("<nvram type='network'><source protocol='nbd' name='x'/></nvram>").nvram, undefined);
  t.equal(withOs("<nvram template='/t'/>").nvram, undefined);
  for (const form of ['<nvram>/a</nvram>', "<nvram type='file'><source file='/a'/></nvram>"]) {
    const xml = withOs(form);
    xml.setNvram('/b & c');
    t.equal(xml.nvram, '/b & c');
    t.equal(xml.toString().includes('/a<') || xml.toString().includes('"/a"'), false);
  }
  t.throws(() => withOs('').setNvram('/b'), { code: 'XML_ELEMENT_MISSING' });
  const chosen = DomainXml.parse("<domain><os firmware='efi'/></domain>");
  chosen.setNvram('/b');
  t.equal(chosen.nvram, '/b', 'also where libvirt would choose the path');
  t.end();
});

void t.test('memory sizes are read in libvirt’s units', (t) => {
  const sizes = {
    b: 1,
    bytes: 1,
    KB: 1000,
    k: 1024,
    KiB: 1024,
    MB: 1e6,
    M: 2 ** 20,
    GiB: 2 ** 30,
    TB: 1e12,
    E: 2 ** 60,
  };
  for (const [unit, factor] of Object.entries(sizes)) {
    t.equal(
      DomainXml.parse(`<domain><memory unit='${unit}'>3</memory></domain>`).memoryBytes,
      3 * factor,
      unit,
    );
  }
  t.equal(DomainXml.parse('<domain><memory>3</memory></domain>').memoryBytes, 3072, 'without a unit');
  for (const bad of ["<memory unit='XB'>1</memory>", '<memory>much</memory>']) {
    t.throws(() => DomainXml.parse(`<domain>${bad}</domain>`).memoryBytes, { code: 'XML_INVALID' });
  }
  t.throws(() => DomainXml.parse('<domain/>').memoryBytes, { code: 'XML_ELEMENT_MISSING' });
  t.end();
});

void t.test('each mutator changes what its name says and nothing else', async (t) => {
  const live = await fixture('web-1.live');
  t.same(
    changed(live, (xml) => xml.setName('web-2')).map((line) => line.slice(-9)),
    ['3 "web-1"', '3 "web-2"'],
  );
  t.equal(
    changed(live, (xml) => xml.setUuid('00000000-0000-4000-8000-000000000001')).length,
    4,
    'uuid, sysinfo',
  );
  t.match(
    changed(live, (xml) => xml.setVolumePath('vda', '/x/"y"&<z>.qcow2')),
    [
      /^-.*\/\{\}source file="\/srv\/images\/web-1-vda.qcow2" index="4"$/,
      /^\+.*\/\{\}source file=.*z>.qcow2" index="4"$/,
    ],
  );
  t.match(changed(live, (xml) => xml.setVolumePath('vdb', '/x', 'qcow2')).length, 4, 'path and format');
  t.match(
    changed(live, (xml) => xml.setMac('52:54:00:11:22:34', '52:54:00:00:00:01')),
    [/-.*22:34/, /\+.*00:01/],
  );
  t.match(
    changed(live, (xml) => xml.setLinkState(0, 'down')),
    [/^\+.*\{\}link state="down"$/],
  );
  t.match(
    changed(live, (xml) => xml.setLinkState(1, 'up')),
    [/-.*"down"/, /\+.*"up"/],
  );
  const removed = changed(live, (xml) => xml.removeBackingStores());
  t.ok(
    removed.every((line) => line.startsWith('-/{}domain/{}devices/{}disk/{}backingStore')),
    'only in disks',
  );
  t.equal(removed.length, 1 + 2 + 1 + 2 + 1 + 1);
});

void t.test('values that would make a definition invalid are refused', async (t) => {
  const xml = DomainXml.parse(await fixture('render-7.persistent'));
  for (const name of ['', 'a/b', 'a\nb']) t.throws(() => xml.setName(name), { code: 'XML_VALUE_INVALID' });
  t.throws(() => xml.setUuid('1234'), { code: 'XML_VALUE_INVALID' });
  t.throws(() => xml.setMac(0, '52:54:00'), { code: 'XML_VALUE_INVALID' });
  t.throws(() => xml.setMac(9, '52:54:00:00:00:01'), { code: 'XML_INTERFACE_NOT_FOUND' });
  t.throws(() => xml.setVolumePath('vdc', '/x'), { code: 'XML_VOLUME_NOT_A_FILE' });
  const identity = { name: 'x', uuid: '00000000-0000-4000-8000-000000000001', macs: [] };
  t.throws(() => xml.prepareForNewMachine(identity), { code: 'XML_VALUE_INVALID' });
  t.equal(
    xml.toString(),
    DomainXml.parse(await fixture('render-7.persistent')).toString(),
    'nothing was changed',
  );
});

void t.test('a new machine has nothing that collides with the running one', async (t) => {
  const xml = DomainXml.parse(await fixture('web-1.live'));
  const uuid = '00000000-0000-4000-8000-000000000001';
  xml.prepareForNewMachine({ name: 'web-2', uuid, macs: ['52:54:00:00:00:01', '52:54:00:00:00:02'] });
  const text = xml.toString();
  for (const trace of [
    /web-1</,
    /4e9f2d51|3e9f2d51/,
    /52:54:00:11/,
    / id="1" xmlns/,
    /vnet0/,
    /\/dev\/pts/,
    /domain-1-/,
    /port="5900"/,
    /<label>/,
    /state="(?:dis)?connected"/,
    /<alias name="(?!ua-)/,
  ]) {
    t.notMatch(text, trace);
  }
  t.match(text, /<genid\/>/);
  t.match(text, /<alias name="ua-rng"\/>/);
  t.match(text, /<qemu:arg value="debug-threads=on"\/>/);
  t.match(text, /<target type="virtio" name="org.qemu.guest_agent.0"\/>/);
  t.equal(xml.volumes.length, 4);
  const other = DomainXml.parse(await fixture('render-7.persistent'));
  other.prepareForNewMachine({
    name: 'r',
    uuid,
    macs: other.interfaces.map((_, i) => `52:54:00:00:00:0${i}`),
  });
  t.notMatch(other.toString(), /interfaceid|render7"/);
  t.match(other.toString(), /port="5911"/, 'a fixed port is the owner’s choice');
});

void t.test('passwords are taken out, and it is said which', async (t) => {
  const xml = DomainXml.parse(await fixture('web-1.migratable'));
  t.same(xml.stripSecrets(), ['graphics vnc: passwd', 'graphics vnc: passwdValidTo']);
  t.notMatch(xml.toString(), /s3cret|passwd/);
  t.same(xml.stripSecrets(), []);
});

void t.test('hostile and broken input is refused quickly', (t) => {
  const laughs = `<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><domain><name>&b;</name></domain>`;
  const inputs: Record<string, string> = {
    laughs,
    external: '<!DOCTYPE domain SYSTEM "file:///etc/passwd"><domain/>',
    'undeclared entity': '<domain><name>&b;</name></domain>',
    deep: '<domain>'.repeat(100_000),
    'deep and closed': `<domain>${'<a>'.repeat(1000)}${'</a>'.repeat(1000)}</domain>`,
    big: `<domain><name>${'x'.repeat(4 * 1024 * 1024)}</name></domain>`,
    'open tags': '<'.repeat(1_000_000),
    'open comments': '<!--'.repeat(1_000_000),
    'open quote': `<domain a='${'<b a="'.repeat(100_000)}`,
    'other root': '<network/>',
    'other namespace': '<domain xmlns="urn:x"/>',
    'two roots': '<domain/><domain/>',
    'text after': '<domain/>rm',
    unclosed: '<domain><name></domain>',
    'unbound prefix': '<domain><a:b/></domain>',
    'duplicate attribute': '<domain a="1" a="2"/>',
    'control character': '<domain>\u0000</domain>',
    empty: '',
    text: 'error: failed to get domain',
  };
  for (const [what, input] of Object.entries(inputs)) {
    const startMs = performance.now();
    t.throws(() => DomainXml.parse(input), { code: 'XML_INVALID' }, what);
    t.ok(performance.now() - startMs < 2000, `${what}: quickly`);
  }
  t.throws(
    () =>
      DomainXml.parse("<domain><devices><disk type='tape'><target dev='a'/></disk></devices></domain>")
        .volumes,
    {
      code: 'XML_INVALID',
    },
  );
  t.end();
});

void t.test('any text keeps its meaning through parse and print, and after one change', (t) => {
  const seed = Number(process.env.STILLPOINT_SEED ?? Date.now() % 2 ** 31);
  t.comment(`seed ${seed} (STILLPOINT_SEED)`);
  const word = fc.string({ unit: 'binary', maxLength: 12 }).map((raw) =>
    // oxlint-disable-next-line no-control-regex
    raw.replaceAll(/[\u0000-\u0008\u000b-\u001f\ud800-\udfff\ufffe\uffff]/g, '·'),
  );
  const escaped = word.map((raw) =>
    raw.replaceAll(/[&<>"'\t\n]/g, (character) => `&#${character.charCodeAt(0)};`),
  );
  const name = fc.constantFrom('a', 'disk', 'x:y', 'source', 'backingStore', 'name');
  const node: fc.Memo<string> = fc.memo((depth) =>
    fc.oneof(
      escaped,
      word.map((raw) => `<!--${raw.replaceAll('-', '_')}-->`),
      word.map((raw) => `<![CDATA[${raw.replaceAll(']', ')')}]]>`),
      fc
        .tuple(
          name,
          escaped,
          escaped,
          depth > 1 ? fc.array(node(depth - 1), { maxLength: 4 }) : fc.constant([]),
        )
        .map(([tag, one, two, inner]) => `<${tag} b='${one}' x:a="${two}">${inner.join('')}</${tag}>`),
    ),
  );
  fc.assert(
    fc.property(fc.array(node(4), { maxLength: 6 }), word, (nodes, newName) => {
      const source = `<domain xmlns:x='urn:x'><name>n</name>${nodes.join('')}</domain>`;
      const printed = DomainXml.parse(source).toString();
      const difference1 = difference(source, printed);
      const name2 = `n${newName.replaceAll(/[/\n]/g, '')}`;
      const xml = DomainXml.parse(source);
      xml.setName(name2);
      const difference2 = difference(source, xml.toString());
      const expected = name2.trim() === 'n' && name2 === 'n' ? 0 : 2;
      return difference1.length === 0 && difference2.length === expected;
    }),
    { seed, numRuns: 500 },
  );
  t.end();
});

void t.test('what a description was damaged by before, U+FFFD, is kept as it is', (t) => {
  const source = "<domain><name>n</name><title a='\uFFFD'>caf\uFFFD</title><!--\uFFFD--></domain>";
  t.equal(DomainXml.parse(source).toString(), source.replaceAll("'", '"'));
  t.end();
});

void t.test('a refused definition says how to check it', (t) => {
  t.throws(() => DomainXml.parse('x'), {
    name: 'DomainXmlError',
    hint: /virt-xml-validate/,
    retryable: false,
  });
  t.end();
});

void t.test('the user of a machine that runs is what libvirt says, as numbers or not at all', (t) => {
  const userOf = (label: string): unknown =>
    DomainXml.parse(`<domain type="qemu"><name>m</name>${label}</domain>`).processUser;
  const dac = (label: string): string =>
    `<seclabel type="dynamic" model="dac"><label>${label}</label></seclabel>`;
  const apparmor = '<seclabel type="dynamic" model="apparmor"><label>+1:+2</label></seclabel>';
  t.same(userOf(apparmor + dac('+64055:+108')), { uid: 64055, gid: 108 });
  t.equal(userOf(apparmor), undefined);
  t.equal(userOf(dac('qemu:kvm')), undefined);
  t.end();
});
