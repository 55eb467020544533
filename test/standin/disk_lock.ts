/** One writer a disk, as QEMU's own locks see to it: an abstract socket that is named after the file and goes with its process. */
import { fstatSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';

/** True for a descriptor that may be written through: proc(5), fdinfo. */
export const isWritable = (fd: number): boolean => {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1];
  return (Number.parseInt(flags ?? '0', 8) & 3) !== 0;
};

/** Rejects while another stand-in has it. */
export const lockDisk = (fd: number): Promise<void> =>
  new Promise((resolve, reject) => {
    const { dev, ino } = fstatSync(fd);
    const server = createServer();
    server.once('error', () => reject(new Error('Failed to get "write" lock: is another process using the image?')));
    server.listen(`\0nexus-standin-disk-${dev}-${ino}`, resolve);
  });
