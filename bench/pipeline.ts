/**
 * npm run bench -- pipeline [MEBIBYTES] [zero|mixed|random]: what the repository's writer and reader make of one volume,
 * against what the processors could do if nothing else took time. Nothing of a hypervisor is in it; the volume is made
 * in memory, the repository is a directory.
 */
import { randomBytes } from 'node:crypto';
import { mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { VolumeSource } from '../common/volumeSource.ts';
import { FileBackend } from '../storage/backends/fileBackend.ts';
import { ChunkWorkers } from '../storage/repository/chunkWorkers.ts';
import { Repository } from '../storage/repository/repository.ts';
import { writeStream } from '../storage/repository/streamWriter.ts';
import { ceilingOf } from './ceiling.ts';

const mebibyte = 1024 * 1024;
const chunkBytes = mebibyte;

/** Each chunk is another one; every second page of 4 KiB compresses well. */
function mixedSource(mebibytes: number, kind: string): VolumeSource {
  const patterns = Array.from({ length: 16 }, (_, index) => {
    const pattern = randomBytes(chunkBytes);
    if (kind === 'mixed')
      for (let at = 0; at < chunkBytes; at += 8192)
        pattern.fill(`line ${index} ${at % 7} of a text`, at, at + 4096);
    return pattern;
  });
  const isZero = (chunk: number): boolean => kind === 'zero' && chunk % 8 !== 0;
  return {
    virtualSizeBytes: mebibytes * mebibyte,
    extents: () => Promise.resolve([{ offsetBytes: 0, lengthBytes: mebibytes * mebibyte, zero: false }]),
    readInto: async (target, offsetBytes) => {
      const chunk = Math.floor(offsetBytes / chunkBytes);
      if (isZero(chunk)) {
        target.fill(0);
        return;
      }
      patterns[chunk % patterns.length]?.copy(target);
      target.writeUInt32BE(chunk, 8);
    },
  };
}

async function pssMebibytes(): Promise<number> {
  const text = await readFile('/proc/self/smaps_rollup', 'utf8');
  return Number(/^Pss:\s+(\d+)/m.exec(text)?.[1] ?? 0) / 1024;
}

async function timed(name: string, mebibytes: number, work: () => Promise<void>): Promise<number> {
  let peak = 0;
  const watch = setInterval(() => {
    void (async () => {
      peak = Math.max(peak, await pssMebibytes());
    })();
  }, 1000);
  const cpu = process.cpuUsage();
  const faults = process.resourceUsage().minorPageFault;
  const own = process.threadCpuUsage();
  const start = performance.now();
  await work();
  const seconds = (performance.now() - start) / 1000;
  clearInterval(watch);
  const { user, system } = process.cpuUsage(cpu);
  const mainThread = process.threadCpuUsage(own);
  const rate = mebibytes / seconds;
  console.log(
    JSON.stringify({
      name,
      mebibytesPerSecond: Math.round(rate),
      cpuMsPerMebibyte: Number(((user + system) / 1000 / mebibytes).toFixed(2)),
      ofItOnTheMainThread: Number(((mainThread.user + mainThread.system) / 1000 / mebibytes).toFixed(2)),
      systemMsPerMebibyte: Number((system / 1000 / mebibytes).toFixed(2)),
      pageFaultsPerMebibyte: Math.round((process.resourceUsage().minorPageFault - faults) / mebibytes),
      processors: Number(((user + system) / 1e6 / seconds).toFixed(2)),
      peakPssMebibytes: Math.round(peak),
    }),
  );
  return rate;
}

const mebibytes = Number(process.argv[2] ?? 2048);
const kind = process.argv[3] ?? 'mixed';
const isStoreLeftOut = process.env['STILLPOINT_BENCH_STORE'] === 'none';

async function main(directory: string): Promise<void> {
  const source = mixedSource(mebibytes, kind);
  const key = Buffer.alloc(32, 1);
  const samples: Buffer[] = [];
  for (let chunk = 0; chunk < 16; chunk++) {
    const sample = Buffer.alloc(chunkBytes);
    await source.readInto(sample, chunk * 8 * chunkBytes);
    samples.push(sample);
  }
  console.log(JSON.stringify({ kind, ...ceilingOf(samples) }));
  samples.length = 0;
  const backend = new FileBackend(directory);
  // Without the store, whose own work nobody can save.
  if (isStoreLeftOut) {
    const create = backend.create.bind(backend);
    backend.create = async (name, parts, options) =>
      name.startsWith('packs/') ? 'created' : create(name, parts, options);
  }
  const workers = new ChunkWorkers();
  const repository = await Repository.init(
    backend,
    { secret: { kind: 'keyFile', key }, label: 'bench', createdAt: new Date().toISOString() },
    { workers },
  );
  const session = await repository.begin({
    backupId: '00000000-0000-7000-8000-000000000001',
    startedAt: new Date().toISOString(),
  });
  const wanted = { chunkSizeBytes: chunkBytes };
  let content = await writeStream(
    { ...source, virtualSizeBytes: 0, extents: async () => [] },
    session,
    wanted,
  );
  await timed('write', mebibytes, async () => {
    content = await writeStream(source, session, wanted);
    await session.flush();
  });
  console.log(JSON.stringify(session.statistics));
  if (isStoreLeftOut) return;
  await timed('write again', mebibytes, async () => void (await writeStream(source, session, wanted)));
  const reader = await repository.openStream(content);
  const buffer = Buffer.alloc(2 * mebibyte);
  const sink = await open('/dev/null', 'w');
  await timed('read', mebibytes, async () => {
    for (let at = 0; at < source.virtualSizeBytes; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, source.virtualSizeBytes - at));
      await reader.readInto(piece, at);
      await sink.write(piece);
    }
  });
  await sink.close();
}

const directory = await mkdtemp(join(process.env['STILLPOINT_BENCH_DIR'] ?? tmpdir(), 'pipeline-'));
try {
  await main(directory);
} finally {
  await rm(directory, { recursive: true, force: true });
}
