import { isErrno } from './errors.ts';

/** The four calls of libc, on a name itself and never on what a link leads to. */
interface Libc {
  readonly get: (path: string, name: string, value: Buffer | null, size: number) => number;
  readonly set: (path: string, name: string, value: Buffer, size: number, flags: number) => number;
  readonly list: (path: string, names: Buffer | null, size: number) => number;
  readonly remove: (path: string, name: string) => number;
  readonly failure: () => string;
}

let loaded: Promise<Libc> | undefined;

/** libc through koffi; loaded at the first use, because most commands never need it. */
async function libc(): Promise<Libc> {
  loaded ??= (async () => {
    const { default: koffi } = await import('koffi');
    const library = koffi.load('libc.so.6');
    const names = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]));
    return {
      get: library.func('long lgetxattr(const char *path, const char *name, void *value, size_t size)'),
      set: library.func(
        'int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)',
      ),
      list: library.func('long llistxattr(const char *path, void *list, size_t size)'),
      remove: library.func('int lremovexattr(const char *path, const char *name)'),
      failure: () => names.get(koffi.errno()) ?? `errno ${koffi.errno()}`,
    };
  })();
  return loaded;
}

function systemError(code: string, call: string, path: string, name: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: ${call} ${name} of ${path}`), { code, path, syscall: call });
}

/** True for the answers "there is no such attribute" and "this file system has none". */
function isAbsent(code: string): boolean {
  return code === 'ENODATA' || code === 'ENOTSUP' || code === 'EOPNOTSUPP';
}

/** Largest value that Linux stores (XATTR_SIZE_MAX). */
const maxValueBytes = 65_536;

/** An extended attribute of a file, or `null` if it has none of that name or its file system none at all. */
export async function getXattr(path: string, name: string): Promise<Buffer | null> {
  const { get, failure } = await libc();
  const value = Buffer.alloc(maxValueBytes);
  const sizeBytes = get(path, name, value, value.length);
  if (sizeBytes >= 0) return Buffer.from(value.subarray(0, sizeBytes));
  const code = failure();
  if (isAbsent(code)) return null;
  throw systemError(code, 'lgetxattr', path, name);
}

/** Sets an extended attribute. Throws ENOTSUP where the file system has none. */
export async function setXattr(path: string, name: string, value: Buffer): Promise<void> {
  const { set, failure } = await libc();
  if (set(path, name, value, value.length, 0) !== 0) throw systemError(failure(), 'lsetxattr', path, name);
}

/** Names of the extended attributes of a file; none where the file system has none. */
export async function listXattrs(path: string): Promise<readonly string[]> {
  const { list, failure } = await libc();
  const names = Buffer.alloc(maxValueBytes);
  const sizeBytes = list(path, names, names.length);
  if (sizeBytes >= 0) return names.subarray(0, sizeBytes).toString('utf8').split('\0').filter(Boolean);
  const code = failure();
  if (isAbsent(code)) return [];
  throw systemError(code, 'llistxattr', path, '');
}

/** Removes an extended attribute. Tells whether it was there. */
export async function removeXattr(path: string, name: string): Promise<boolean> {
  const { remove, failure } = await libc();
  if (remove(path, name) === 0) return true;
  const code = failure();
  if (isAbsent(code)) return false;
  throw systemError(code, 'lremovexattr', path, name);
}

/** SELinux label and POSIX access list: what decides beside owner and mode who may open an image. */
const securityLabels = ['security.selinux', 'system.posix_acl_access'] as const;

/**
 * Gives `to` the SELinux label and the POSIX access list of `from`, if it has them.
 *
 * @returns names of the labels that the file system of `to` cannot hold.
 */
export async function copySecurityLabel(from: string, to: string): Promise<readonly string[]> {
  const lost: string[] = [];
  for (const name of securityLabels) {
    const value = await getXattr(from, name);
    if (value === null) continue;
    try {
      await setXattr(to, name, value);
    } catch (error) {
      if (!isErrno(error, 'ENOTSUP') && !isErrno(error, 'EOPNOTSUPP')) throw error;
      lost.push(name);
    }
  }
  return lost;
}

/** libvirt keeps here what a file was before it was given to QEMU (libvirt, security_util.c). */
const libvirtPrefix = 'trusted.libvirt.security.';

/**
 * The owner that libvirt will give back to an image when its machine stops, or `null` if it remembers none.
 * libvirt writes it as `+UID:+GID` (security_dac.c, virSecurityDACRememberLabel).
 *
 * @throws Error when the attribute has another form: guessing an owner would be worse.
 */
export async function rememberedOwner(
  path: string,
): Promise<{ readonly uid: number; readonly gid: number } | null> {
  const value = await getXattr(path, `${libvirtPrefix}dac`);
  if (value === null) return null;
  const text = value.toString('latin1').replace(/\0+$/, '');
  const ids = /^\+?(\d{1,10}):\+?(\d{1,10})$/.exec(text);
  if (ids === null)
    throw new Error(`${path} has an owner label that is not libvirt's: ${JSON.stringify(text)}`);
  return { uid: Number(ids[1]), gid: Number(ids[2]) };
}

/**
 * Takes libvirt's own marks off a file that has left its machine: with them, libvirt would count it as still
 * in use and give it owners of another time.
 *
 * @returns names of the marks that were taken off.
 */
export async function dropLibvirtLabels(path: string): Promise<readonly string[]> {
  const marks = (await listXattrs(path)).filter((name) => name.startsWith(libvirtPrefix));
  for (const name of marks) await removeXattr(path, name);
  return marks;
}
