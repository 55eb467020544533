/** What the guest's files say no with, as faults for the reader. */
import { Fault, type FaultCode } from '../api/fault.ts';
import { plain } from '../lib/text.ts';
import { readRefusal, refusal } from './refusal.ts';

/** code of the guest -> ours, and why in words */
const WHY: Record<string, readonly [FaultCode, string]> = {
  ENOENT: ['not_found', 'there is no such file or directory'],
  EEXIST: ['exists', 'it is there already'],
  ENOTEMPTY: ['exists', 'the directory is not empty'],
  EISDIR: ['invalid', 'it is a directory'],
  ENOTDIR: ['invalid', 'what should be a directory is none'],
  NOT_REGULAR: ['invalid', 'it is not a regular file'],
  ENAMETOOLONG: ['invalid', 'a name in it is too long'],
  ELOOP: ['invalid', 'it leads over too many links'],
  EINVAL: ['invalid', "the guest's file system does not take that"],
  EXDEV: ['invalid', 'it would have to go to another file system'],
  ENOSPC: ['guest', "the guest's disk is full"],
  EDQUOT: ['guest', "the guest's quota is used up"],
  EFBIG: ['guest', "it is longer than the guest's file system takes"],
  EROFS: ['guest', "the guest's file system is read-only"],
  EACCES: ['guest', 'the guest does not permit it'],
  EPERM: ['guest', 'the guest does not permit it'],
  EBUSY: ['guest', 'the guest is using it'],
  ETXTBSY: ['guest', 'the guest is running it'],
  WATCHES: ['guest', "the guest's kernel watches as much as it may (fs.inotify)"],
  ARCHIVE: ['invalid', 'it is no tar archive, or a name in it leads out of the directory'],
  CHANGED: ['bad_state', 'it has changed meanwhile'],
  SHRUNK: ['bad_state', 'it became shorter while it was read'],
};

const CODE = /^[A-Z][A-Z0-9_]{1,31}$/;

/** A path as it can be shown in a sentence. */
export const shown = (path: string): string => {
  const text = plain(path);
  return `'${text.length > 200 ? `${text.slice(0, 200)}…` : text}'`;
};

/** The fault for a code of the guest; `reason` is that code. */
export const codeFault = (what: string, code: string, hint?: string): Fault => {
  if (!CODE.test(code)) return new Fault('guest', `Cannot ${what}: the guest gave no reason.`);
  const [fault, why] = (Object.hasOwn(WHY, code) ? WHY[code] : undefined) ?? ['guest', `the guest says ${code}`];
  return new Fault(fault, `Cannot ${what}: ${why}.`, { reason: code, hint });
};

/** The fault for an answer of 400 or more to a request about files. */
export const fileRefusal = (what: string, status: number, body: Buffer, hint?: string): Fault => {
  return status === 422 ? codeFault(what, readRefusal(body).code, hint) : refusal(what, status, body);
};
