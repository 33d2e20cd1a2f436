import * as z from 'zod';
import type { PrivateLibvirtd } from './libvirtd.ts';

const schema = z.looseObject({
  format: z.string(),
  'virtual-size': z.int(),
  'backing-filename': z.string().optional(),
});

/** What `qemu-img info` says about an image in the laboratory, also one in use. */
export async function imageInfo(libvirtd: PrivateLibvirtd, file: string): Promise<z.infer<typeof schema>> {
  const { stdout } = await libvirtd.run('qemu-img', ['info', '-U', '--output=json', file]);
  return schema.parse(JSON.parse(stdout));
}
