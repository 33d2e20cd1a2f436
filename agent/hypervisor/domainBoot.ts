import type { Element } from '@xmldom/xmldom';

import { child, text } from './domainDom.ts';

/** A file of the host that a machine is started with. */
export interface BootFile {
  readonly kind: 'kernel' | 'initrd' | 'dtb' | 'loader';
  readonly path: string;
}

const kinds = ['kernel', 'initrd', 'dtb', 'loader'] as const;

/** The files that `<os>` names; where libvirt chooses the firmware, only a live definition names it. */
export function readBootFiles(root: Element): readonly BootFile[] {
  const os = child(root, 'os');
  return kinds.flatMap((kind) => {
    const path = text(child(os, kind));
    return path?.startsWith('/') === true ? [{ kind, path }] : [];
  });
}
