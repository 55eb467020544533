/** Processes by a mark in their environment. */
import { readdir, readFile } from 'node:fs/promises';
import { isAlive, type ProcRef, procRef } from './proc.ts';

/** Running processes that were started with this variable in their environment, other than this one and those we may not look into. */
export const procsWithEnv = async (name: string, value: string): Promise<ProcRef[]> => {
  const entry = `\0${name}=${value}\0`;
  const found: ProcRef[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const env = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
    const ref = `\0${env}`.includes(entry) ? await procRef(Number(pid)) : undefined;
    if (ref !== undefined && (await isAlive(ref))) found.push(ref);
  }
  return found;
};
