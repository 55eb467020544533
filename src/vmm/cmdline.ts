/** The kernel's command line. Pure. */
import { Fault } from '../api/fault.ts';

/** x86 Linux takes 2048 bytes, the NUL included (COMMAND_LINE_SIZE). */
const MAX_CMDLINE = 2047;

/** The words as one line; `reserve` bytes are left for what the VMM appends itself. */
export const kernelLine = (words: readonly string[], reserve = 0): string => {
  const line = words.join(' ');
  const max = MAX_CMDLINE - reserve;
  if (line.length > max || !/^[\x20-\x7e]*$/.test(line)) {
    const why = line.length > max ? `it is longer than ${max} bytes` : 'it is not plain ASCII';
    throw new Fault('invalid', `Cannot use this kernel command line: ${why}.`);
  }
  return line;
};
