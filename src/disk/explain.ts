/** Why a disk could not be made, for whoever asked for it. */
import { Fault } from '../api/fault.ts';
import { formatBytes } from '../lib/size.ts';
import { errno } from './length.ts';
import { roomIn } from './room.ts';

export const explain = async (data: string, noun: string, cause: unknown): Promise<unknown> => {
  const code = errno(cause);
  if (code === 'ENOTEMPTY' || code === 'EEXIST')
    return new Fault('exists', `Cannot make the disk of ${noun}: there is one.`, { cause });
  if (code === 'EFBIG')
    return new Fault('invalid', `Cannot make the disk of ${noun}: the file system holds no file of that length.`, {
      cause,
    });
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return cause;
  const { free_bytes: free } = await roomIn(data);
  return new Fault('no_room', `Cannot make the disk of ${noun}: the data directory has ${formatBytes(free)} free.`, {
    hint: `free space in ${data}`,
    cause,
  });
};
