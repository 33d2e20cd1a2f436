import koffi from 'koffi';

/**
 * The functions of `libvirt.so.0` that we call, as declared in libvirt's own headers (their C interface is
 * promised to stay). Used in a child process only: every call blocks, and a wrong pointer ends the process.
 */

/** An address inside libvirt. Never kept longer than the object it belongs to. */
export type Pointer = bigint;

/** A place for a value that a function gives back through a pointer. */
export type Out<T> = [T | null];

/** `virError`, the fields that we use. */
export interface RawError {
  readonly code: number;
  readonly domain: number;
  readonly message: string | null;
  /** Of a system error: its errno. */
  readonly int1: number;
}

/** `virDomainBlockJobInfo`. */
export interface RawBlockJobInfo {
  readonly type: number;
  readonly bandwidth: number | bigint;
  readonly cur: number | bigint;
  readonly end: number | bigint;
}

/** `virDomainJobInfo`, the fields that we use. */
export interface RawJobInfo {
  readonly type: number;
  readonly dataTotal: number | bigint;
  readonly dataProcessed: number | bigint;
}

const errorType = koffi.struct('virError', {
  code: 'int',
  domain: 'int',
  message: 'str',
  level: 'int',
  conn: 'void *',
  dom: 'void *',
  str1: 'void *',
  str2: 'void *',
  str3: 'void *',
  int1: 'int',
  int2: 'int',
  net: 'void *',
});
koffi.struct('virDomainBlockJobInfo', { type: 'int', bandwidth: 'ulong', cur: 'uint64', end: 'uint64' });
koffi.struct('virDomainBlockInfo', { capacity: 'uint64', allocation: 'uint64', physical: 'uint64' });
koffi.struct('virDomainJobInfo', {
  type: 'int',
  timeElapsed: 'uint64',
  timeRemaining: 'uint64',
  dataTotal: 'uint64',
  dataProcessed: 'uint64',
  dataRemaining: 'uint64',
  memTotal: 'uint64',
  memProcessed: 'uint64',
  memRemaining: 'uint64',
  fileTotal: 'uint64',
  fileProcessed: 'uint64',
  fileRemaining: 'uint64',
});
const closeCallback = koffi.pointer(
  koffi.proto('void virConnectCloseFunc(void *conn, int reason, void *opaque)'),
);
const lifecycleCallback = koffi.pointer(
  koffi.proto(
    'void virConnectDomainEventCallback(void *conn, void *dom, int event, int detail, void *opaque)',
  ),
);
const blockJobCallback = koffi.pointer(
  koffi.proto(
    'void virConnectDomainEventBlockJobCallback(void *conn, void *dom, str disk, int type, int status, void *opaque)',
  ),
);
const ioErrorCallback = koffi.pointer(
  koffi.proto(
    'void virConnectDomainEventIOErrorReasonCallback(void *conn, void *dom, str path, str alias, int action, str reason, void *opaque)',
  ),
);

const library = koffi.load('libvirt.so.0');

type OfConnection<T> = (connection: Pointer) => T;
type OfDomain<T> = (domain: Pointer) => T;
type Flags = number;

/** libvirt's functions under their own names; results and errors as in libvirt's reference. */
export interface Libvirt {
  readonly virConnectOpen: (uri: string) => Pointer | null;
  readonly virConnectClose: OfConnection<number>;
  readonly virConnectIsAlive: OfConnection<number>;
  readonly virConnectSetKeepAlive: (connection: Pointer, intervalSeconds: number, count: number) => number;
  readonly virConnectGetHostname: OfConnection<string | null>;
  readonly virConnectGetURI: OfConnection<string | null>;
  readonly virConnectGetCapabilities: OfConnection<string | null>;
  readonly virConnectGetLibVersion: (connection: Pointer, version: Out<number>) => number;
  readonly virConnectGetVersion: (connection: Pointer, version: Out<number>) => number;
  readonly virConnectListAllDomains: (connection: Pointer, domains: Out<Pointer>, flags: Flags) => number;

  readonly virDomainLookupByUUIDString: (connection: Pointer, uuid: string) => Pointer | null;
  readonly virDomainLookupByName: (connection: Pointer, name: string) => Pointer | null;
  readonly virDomainFree: OfDomain<number>;
  readonly virDomainCreateXML: (connection: Pointer, xml: string, flags: Flags) => Pointer | null;
  readonly virDomainScreenshot: (
    domain: Pointer,
    stream: Pointer,
    screen: number,
    flags: Flags,
  ) => string | null;
  readonly virStreamNew: (connection: Pointer, flags: Flags) => Pointer | null;
  readonly virStreamRecv: (stream: Pointer, data: Buffer, length: number) => number;
  readonly virStreamFinish: (stream: Pointer) => number;
  readonly virStreamFree: (stream: Pointer) => number;
  readonly virDomainGetUUIDString: (domain: Pointer, buffer: Buffer) => number;
  readonly virDomainGetName: OfDomain<string | null>;
  readonly virDomainGetState: (
    domain: Pointer,
    state: Out<number>,
    reason: Out<number>,
    flags: Flags,
  ) => number;
  readonly virDomainIsPersistent: OfDomain<number>;
  readonly virDomainGetAutostart: (domain: Pointer, autostart: Out<number>) => number;
  readonly virDomainSetAutostart: (domain: Pointer, autostart: number) => number;
  readonly virDomainGetMaxMemory: OfDomain<number | bigint>;
  readonly virDomainHasManagedSaveImage: (domain: Pointer, flags: Flags) => number;
  readonly virDomainGetXMLDesc: (domain: Pointer, flags: Flags) => string | null;

  readonly virDomainDefineXMLFlags: (connection: Pointer, xml: string, flags: Flags) => Pointer | null;
  readonly virDomainUndefineFlags: (domain: Pointer, flags: Flags) => number;
  readonly virDomainCreateWithFlags: (domain: Pointer, flags: Flags) => number;
  readonly virDomainSuspend: OfDomain<number>;
  readonly virDomainResume: OfDomain<number>;
  readonly virDomainDestroyFlags: (domain: Pointer, flags: Flags) => number;

  readonly virDomainSaveFlags: (domain: Pointer, file: string, xml: string, flags: Flags) => number;
  readonly virDomainRestoreFlags: (
    connection: Pointer,
    file: string,
    xml: string | null,
    flags: Flags,
  ) => number;
  readonly virDomainSaveImageGetXMLDesc: (connection: Pointer, file: string, flags: Flags) => string | null;
  readonly virDomainSaveImageDefineXML: (
    connection: Pointer,
    file: string,
    xml: string,
    flags: Flags,
  ) => number;
  readonly virDomainSnapshotCreateXML: (domain: Pointer, xml: string, flags: Flags) => Pointer | null;
  readonly virDomainMigrateSetMaxDowntime: (domain: Pointer, downtimeMs: number, flags: Flags) => number;
  readonly virDomainGetJobInfo: (domain: Pointer, info: Partial<RawJobInfo>) => number;
  readonly virDomainAbortJob: OfDomain<number>;

  readonly virDomainBackupBegin: (
    domain: Pointer,
    backupXml: string,
    checkpointXml: string | null,
    flags: Flags,
  ) => number;
  readonly virDomainBackupGetXMLDesc: (domain: Pointer, flags: Flags) => string | null;

  readonly virDomainAgentSetResponseTimeout: (domain: Pointer, seconds: number, flags: Flags) => number;
  readonly virDomainGetTime: (
    domain: Pointer,
    seconds: Out<number | bigint>,
    nanoseconds: Out<number>,
    flags: Flags,
  ) => number;
  readonly virDomainFSFreeze: (domain: Pointer, mountPoints: null, count: number, flags: Flags) => number;
  readonly virDomainFSThaw: (domain: Pointer, mountPoints: null, count: number, flags: Flags) => number;

  readonly virDomainBlockPull: (domain: Pointer, disk: string, bandwidth: number, flags: Flags) => number;
  readonly virDomainBlockRebase: (
    domain: Pointer,
    disk: string,
    base: string,
    bandwidth: number,
    flags: Flags,
  ) => number;
  readonly virDomainBlockCommit: (
    domain: Pointer,
    disk: string,
    base: string,
    top: string,
    bandwidth: number,
    flags: Flags,
  ) => number;
  readonly virDomainGetBlockInfo: (
    domain: Pointer,
    disk: string,
    info: { capacity?: number | bigint },
    flags: Flags,
  ) => number;
  readonly virDomainGetBlockJobInfo: (
    domain: Pointer,
    disk: string,
    info: Partial<RawBlockJobInfo>,
    flags: Flags,
  ) => number;
  readonly virDomainBlockJobSetSpeed: (
    domain: Pointer,
    disk: string,
    bandwidth: number,
    flags: Flags,
  ) => number;
  readonly virDomainBlockJobAbort: (domain: Pointer, disk: string, flags: Flags) => number;

  readonly virDomainListAllSnapshots: (domain: Pointer, list: Out<Pointer>, flags: Flags) => number;
  readonly virDomainSnapshotGetName: (snapshot: Pointer) => string | null;
  readonly virDomainSnapshotGetXMLDesc: (snapshot: Pointer, flags: Flags) => string | null;
  readonly virDomainSnapshotFree: (snapshot: Pointer) => number;
  readonly virDomainListAllCheckpoints: (domain: Pointer, list: Out<Pointer>, flags: Flags) => number;
  readonly virDomainCheckpointCreateXML: (domain: Pointer, xml: string, flags: Flags) => Pointer | null;
  readonly virDomainCheckpointGetName: (checkpoint: Pointer) => string | null;
  readonly virDomainCheckpointFree: (checkpoint: Pointer) => number;
  readonly virDomainCheckpointGetXMLDesc: (checkpoint: Pointer, flags: Flags) => string | null;
  readonly virDomainCheckpointLookupByName: (domain: Pointer, name: string, flags: Flags) => Pointer | null;
  readonly virDomainCheckpointDelete: (checkpoint: Pointer, flags: Flags) => number;

  readonly virEventRegisterDefaultImpl: () => number;
  readonly virConnectRegisterCloseCallback: (
    connection: Pointer,
    callback: Pointer,
    opaque: null,
    free: null,
  ) => number;
  readonly virConnectDomainEventRegisterAny: (
    connection: Pointer,
    domain: null,
    eventId: number,
    callback: Pointer,
    opaque: null,
    free: null,
  ) => number;
}

/** The functions with their C prototypes. */
export const libvirt: Libvirt = {
  virConnectOpen: library.func('void *virConnectOpen(str uri)'),
  virConnectClose: library.func('int virConnectClose(void *conn)'),
  virConnectIsAlive: library.func('int virConnectIsAlive(void *conn)'),
  virConnectSetKeepAlive: library.func('int virConnectSetKeepAlive(void *conn, int interval, uint count)'),
  virConnectGetHostname: library.func('str! virConnectGetHostname(void *conn)'),
  virConnectGetURI: library.func('str! virConnectGetURI(void *conn)'),
  virConnectGetCapabilities: library.func('str! virConnectGetCapabilities(void *conn)'),
  virConnectGetLibVersion: library.func('int virConnectGetLibVersion(void *conn, _Out_ ulong *version)'),
  virConnectGetVersion: library.func('int virConnectGetVersion(void *conn, _Out_ ulong *version)'),
  virConnectListAllDomains: library.func(
    'int virConnectListAllDomains(void *conn, _Out_ void **domains, uint flags)',
  ),

  virDomainLookupByUUIDString: library.func('void *virDomainLookupByUUIDString(void *conn, str uuid)'),
  virDomainLookupByName: library.func('void *virDomainLookupByName(void *conn, str name)'),
  virDomainFree: library.func('int virDomainFree(void *dom)'),
  virDomainCreateXML: library.func('void *virDomainCreateXML(void *conn, str xml, uint flags)'),
  virDomainScreenshot: library.func(
    'str! virDomainScreenshot(void *dom, void *stream, uint screen, uint flags)',
  ),
  virStreamNew: library.func('void *virStreamNew(void *conn, uint flags)'),
  virStreamRecv: library.func('int virStreamRecv(void *stream, void *data, size_t nbytes)'),
  virStreamFinish: library.func('int virStreamFinish(void *stream)'),
  virStreamFree: library.func('int virStreamFree(void *stream)'),
  virDomainGetUUIDString: library.func('int virDomainGetUUIDString(void *dom, void *buf)'),
  virDomainGetName: library.func('str virDomainGetName(void *dom)'),
  virDomainGetState: library.func(
    'int virDomainGetState(void *dom, _Out_ int *state, _Out_ int *reason, uint flags)',
  ),
  virDomainIsPersistent: library.func('int virDomainIsPersistent(void *dom)'),
  virDomainGetAutostart: library.func('int virDomainGetAutostart(void *dom, _Out_ int *autostart)'),
  virDomainSetAutostart: library.func('int virDomainSetAutostart(void *dom, int autostart)'),
  virDomainGetMaxMemory: library.func('ulong virDomainGetMaxMemory(void *dom)'),
  virDomainHasManagedSaveImage: library.func('int virDomainHasManagedSaveImage(void *dom, uint flags)'),
  virDomainGetXMLDesc: library.func('str! virDomainGetXMLDesc(void *dom, uint flags)'),

  virDomainDefineXMLFlags: library.func('void *virDomainDefineXMLFlags(void *conn, str xml, uint flags)'),
  virDomainUndefineFlags: library.func('int virDomainUndefineFlags(void *dom, uint flags)'),
  virDomainCreateWithFlags: library.func('int virDomainCreateWithFlags(void *dom, uint flags)'),
  virDomainSuspend: library.func('int virDomainSuspend(void *dom)'),
  virDomainResume: library.func('int virDomainResume(void *dom)'),
  virDomainDestroyFlags: library.func('int virDomainDestroyFlags(void *dom, uint flags)'),

  virDomainSaveFlags: library.func('int virDomainSaveFlags(void *dom, str to, str dxml, uint flags)'),
  virDomainRestoreFlags: library.func(
    'int virDomainRestoreFlags(void *conn, str from, str dxml, uint flags)',
  ),
  virDomainSaveImageGetXMLDesc: library.func(
    'str! virDomainSaveImageGetXMLDesc(void *conn, str file, uint flags)',
  ),
  virDomainSaveImageDefineXML: library.func(
    'int virDomainSaveImageDefineXML(void *conn, str file, str dxml, uint flags)',
  ),
  virDomainSnapshotCreateXML: library.func(
    'void *virDomainSnapshotCreateXML(void *dom, str xmlDesc, uint flags)',
  ),
  virDomainMigrateSetMaxDowntime: library.func(
    'int virDomainMigrateSetMaxDowntime(void *dom, ulonglong downtime, uint flags)',
  ),
  virDomainGetJobInfo: library.func('int virDomainGetJobInfo(void *dom, _Out_ virDomainJobInfo *info)'),
  virDomainAbortJob: library.func('int virDomainAbortJob(void *dom)'),

  virDomainBackupBegin: library.func(
    'int virDomainBackupBegin(void *dom, str backupXML, str checkpointXML, uint flags)',
  ),
  virDomainBackupGetXMLDesc: library.func('str! virDomainBackupGetXMLDesc(void *dom, uint flags)'),

  virDomainAgentSetResponseTimeout: library.func(
    'int virDomainAgentSetResponseTimeout(void *dom, int timeout, uint flags)',
  ),
  virDomainGetTime: library.func(
    'int virDomainGetTime(void *dom, _Out_ longlong *seconds, _Out_ uint *nseconds, uint flags)',
  ),
  virDomainFSFreeze: library.func(
    'int virDomainFSFreeze(void *dom, void *mountpoints, uint count, uint flags)',
  ),
  virDomainFSThaw: library.func('int virDomainFSThaw(void *dom, void *mountpoints, uint count, uint flags)'),

  virDomainBlockPull: library.func(
    'int virDomainBlockPull(void *dom, str disk, ulong bandwidth, uint flags)',
  ),
  virDomainBlockRebase: library.func(
    'int virDomainBlockRebase(void *dom, str disk, str base, ulong bandwidth, uint flags)',
  ),
  virDomainBlockCommit: library.func(
    'int virDomainBlockCommit(void *dom, str disk, str base, str top, ulong bandwidth, uint flags)',
  ),
  virDomainGetBlockInfo: library.func(
    'int virDomainGetBlockInfo(void *dom, str disk, _Out_ virDomainBlockInfo *info, uint flags)',
  ),
  virDomainGetBlockJobInfo: library.func(
    'int virDomainGetBlockJobInfo(void *dom, str disk, _Out_ virDomainBlockJobInfo *info, uint flags)',
  ),
  virDomainBlockJobSetSpeed: library.func(
    'int virDomainBlockJobSetSpeed(void *dom, str disk, ulong bandwidth, uint flags)',
  ),
  virDomainBlockJobAbort: library.func('int virDomainBlockJobAbort(void *dom, str disk, uint flags)'),

  virDomainListAllSnapshots: library.func(
    'int virDomainListAllSnapshots(void *dom, _Out_ void **snaps, uint flags)',
  ),
  virDomainSnapshotGetName: library.func('str virDomainSnapshotGetName(void *snapshot)'),
  virDomainSnapshotGetXMLDesc: library.func('str! virDomainSnapshotGetXMLDesc(void *snapshot, uint flags)'),
  virDomainSnapshotFree: library.func('int virDomainSnapshotFree(void *snapshot)'),
  virDomainListAllCheckpoints: library.func(
    'int virDomainListAllCheckpoints(void *dom, _Out_ void **checkpoints, uint flags)',
  ),
  virDomainCheckpointCreateXML: library.func(
    'void *virDomainCheckpointCreateXML(void *dom, str xml, uint flags)',
  ),
  virDomainCheckpointGetName: library.func('str virDomainCheckpointGetName(void *checkpoint)'),
  virDomainCheckpointFree: library.func('int virDomainCheckpointFree(void *checkpoint)'),
  virDomainCheckpointGetXMLDesc: library.func(
    'str! virDomainCheckpointGetXMLDesc(void *checkpoint, uint flags)',
  ),
  virDomainCheckpointLookupByName: library.func(
    'void *virDomainCheckpointLookupByName(void *dom, str name, uint flags)',
  ),
  virDomainCheckpointDelete: library.func('int virDomainCheckpointDelete(void *checkpoint, uint flags)'),

  virEventRegisterDefaultImpl: library.func('int virEventRegisterDefaultImpl()'),
  virConnectRegisterCloseCallback: library.func(
    'int virConnectRegisterCloseCallback(void *conn, void *cb, void *opaque, void *freecb)',
  ),
  virConnectDomainEventRegisterAny: library.func(
    'int virConnectDomainEventRegisterAny(void *conn, void *dom, int eventID, void *cb, void *opaque, void *freecb)',
  ),
};

const virSetErrorFunc: (userData: null, handler: Pointer) => void = library.func(
  'void virSetErrorFunc(void *userData, void *handler)',
);
const virGetLastError: () => Pointer | null = library.func('void *virGetLastError()');

/** What the call that just failed on this thread reported. */
export function lastError(): RawError | undefined {
  const pointer = virGetLastError();
  if (pointer === null) return undefined;
  const error: RawError = koffi.decode(pointer, errorType);
  return error;
}

/**
 * Runs libvirt's event loop on a pool thread for the life of the process, so that keepalive goes on while
 * the main thread is inside a call, and an idle process never wakes up. Callbacks come to the main thread.
 *
 * libvirt's default event loop is GLib's default main context (since 6.1). `virEventRunDefaultImpl` runs one
 * turn of it only, and the next turn would have to wait for the main thread: with libvirtd stopped, a call
 * then hung for ever.
 */
export function runEventLoop(): void {
  const glib = koffi.load('libglib-2.0.so.0');
  const loop: Pointer = glib.func('void *g_main_loop_new(void *context, int running)')(null, 0);
  glib.func('void g_main_loop_run(void *loop)').async(loop, (error: unknown) => {
    throw new Error("libvirt's event loop has ended", { cause: error });
  });
}

/**
 * Without a handler libvirt prints every error to stderr. This one is called with NULL and the error, on any
 * thread, and does nothing with NULL; a handler in JavaScript would wait for the main thread.
 */
export function silenceErrors(): void {
  virSetErrorFunc(null, library.symbol('virResetError'));
}

/** Kinds of callbacks, each with its C type. They stay registered for the life of the process. */
export const callbacks = {
  close: (callback: (connection: Pointer, reason: number) => void): Pointer =>
    koffi.register(callback, closeCallback),
  lifecycle: (
    callback: (connection: Pointer, domain: Pointer, event: number, detail: number) => void,
  ): Pointer => koffi.register(callback, lifecycleCallback),
  blockJob: (
    callback: (connection: Pointer, domain: Pointer, disk: string, type: number, status: number) => void,
  ): Pointer => koffi.register(callback, blockJobCallback),
  ioError: (
    callback: (
      connection: Pointer,
      domain: Pointer,
      path: string,
      alias: string,
      action: number,
      reason: string,
    ) => void,
  ): Pointer => koffi.register(callback, ioErrorCallback),
};

/** Reads a list that libvirt allocated (`virConnectListAllDomains` and its like) and frees the list itself. */
export function takeList(list: Out<Pointer>, count: number): Pointer[] {
  const [address] = list;
  if (address === null) return [];
  const pointers: Pointer[] = koffi.decode(address, 'void *', count);
  koffi.free(address);
  return pointers;
}

/** Sends a command to QEMU's monitor; `libvirt-qemu.so.0` is loaded only when this is needed. */
export function qemuMonitorCommand(
  domain: Pointer,
  command: string,
  flags: number,
  result: Out<string>,
): number {
  monitorFunction ??= loadMonitorFunction();
  return monitorFunction(domain, command, result, flags);
}

type MonitorFunction = (domain: Pointer, command: string, result: Out<string>, flags: Flags) => number;
let monitorFunction: MonitorFunction | undefined;

function loadMonitorFunction(): MonitorFunction {
  return koffi
    .load('libvirt-qemu.so.0')
    .func('int virDomainQemuMonitorCommand(void *dom, str cmd, _Out_ str! *result, uint flags)');
}

const prctl: (option: number, value: number) => number = koffi
  .load(null)
  .func('int prctl(int option, ulong arg2)');
const setParentDeathSignal = 1;
const sigkill = 9;

/** Has the kernel kill this process when its parent dies, even in the middle of a blocking call. */
export function dieWithParent(): void {
  if (prctl(setParentDeathSignal, sigkill) !== 0) throw new Error('prctl(PR_SET_PDEATHSIG) failed');
}
