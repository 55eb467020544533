/** `nexusctl cp`: files and trees between this host and a VM, as cp -a would copy them. */
import process from 'node:process';
import { Fault } from '../api/fault.ts';
import { type Bar, makeBar } from './bar.ts';
import { type Cli, out } from './cli.ts';
import type { Copy } from './copy.ts';
import { copyIn } from './cp_in.ts';
import { copyOut } from './cp_out.ts';
import { json } from './show.ts';
import { onSignals } from './signals.ts';

/** A path in a VM, or of this host; `-` is standard input or output. */
interface Place {
  vm: string | undefined;
  path: string;
}

const placeOf = (text: string): Place => {
  const [, vm, path] = /^([A-Za-z0-9][A-Za-z0-9._-]*):(.*)$/s.exec(text) ?? [];
  if (vm === undefined || path === undefined) return { vm: undefined, path: text };
  if (path.startsWith('/')) return { vm, path };
  throw new Fault('invalid', `Cannot copy '${text}': a path in a VM is absolute.`, {
    hint: `${vm}:/${path}, or ./${text} for a file of this host`,
  });
};

export const cpCommand = async (cli: Cli, from_text: string, to_text: string, archive: boolean): Promise<void> => {
  const [from, to] = [placeOf(from_text), placeOf(to_text)];
  const vm = from.vm ?? to.vm;
  if (vm === undefined || (from.vm !== undefined && to.vm !== undefined)) {
    throw new Fault('invalid', 'Cannot copy: one of both is in a VM, as VM:PATH, the other is of this host.');
  }
  const abort = new AbortController();
  const bar: Bar | undefined = process.stderr.isTTY === true && !cli.json ? makeBar() : undefined;
  let done = 0;
  const copy: Copy = {
    ...{ nexus: cli.nexus, vm, archive, signal: abort.signal },
    moved: (bytes, total) => {
      done += bytes;
      bar?.show({ stage: 'copy', done, total, unit: 'bytes' });
    },
  };
  using _ = onSignals(['SIGINT', 'SIGTERM', 'SIGHUP'], () => {
    abort.abort(new Fault('canceled', 'Copying was given up.'));
  });
  try {
    if (from.vm === undefined) await copyIn(copy, from.path, to.path);
    else await copyOut(copy, from.path, to.path);
  } finally {
    bar?.clear();
  }
  if (cli.json) out(json({ bytes: done }));
};
