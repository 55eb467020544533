/** What an archive says about the system in it. */
import type { Arch } from '../api/common.ts';
import type { InitMode } from '../api/image.ts';
import { plain } from '../lib/text.ts';
import type { Scan } from './scan.ts';

export interface Facts {
  /** What its own binaries would run as PID 1; `agent` where there is no init. */
  init: InitMode;
  /** PRETTY_NAME of its os-release. */
  os: string;
  arch: Arch | undefined;
}

/** PRETTY_NAME as os-release(5) writes it: shell quoting. */
export const prettyName = (text: string): string | undefined => {
  const line = text.split('\n').findLast(l => l.startsWith('PRETTY_NAME='));
  const value = line?.slice('PRETTY_NAME='.length).trim();
  if (value === undefined) return undefined;
  const quoted = /^"(.*)"$/s.exec(value)?.[1]?.replace(/\\(["$`\\])/g, '$1') ?? /^'(.*)'$/s.exec(value)?.[1] ?? value;
  return plain(quoted).slice(0, 200) || undefined;
};

const osOf = (scan: Scan): string => {
  for (const name of ['etc/os-release', 'usr/lib/os-release']) {
    const text = scan.texts.get(scan.tree.file(name)?.path ?? '');
    const found = text === undefined ? undefined : prettyName(text.toString('utf8'));
    if (found !== undefined) return found;
  }
  return 'Linux';
};

/** Whether PID 1 would be BusyBox's init. */
export const hasBusyboxInit = (scan: Scan): boolean => {
  const init = scan.tree.file('sbin/init')?.path;
  return init !== undefined && init === scan.tree.file('bin/busybox')?.path;
};

const initOf = (scan: Scan): InitMode => {
  const has = (path: string) => scan.tree.file(path) !== undefined;
  if (has('usr/lib/systemd/systemd') || has('lib/systemd/systemd')) return 'systemd';
  if (has('sbin/openrc')) return 'openrc';
  return hasBusyboxInit(scan) ? 'busybox' : 'agent';
};

export const factsOf = (scan: Scan): Facts => ({ init: initOf(scan), os: osOf(scan), arch: scan.arch });
