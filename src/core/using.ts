/** Assets that are being read stay: what removes one takes it, what reads one uses it, and neither waits for the other. */
import { Fault } from '../api/fault.ts';
import type { Host } from './host.ts';

/** Keeps an asset from being removed until disposed. `need` throws if it is gone already. */
export const useAsset = async (
  host: Host,
  { id }: { id: string },
  need: (host: Host, ref: string) => Promise<unknown>,
): Promise<Disposable> => {
  const used = host.uses.use(id);
  if (used === undefined) throw new Fault('not_found', `There is no '${id}' any more: it is being removed.`);
  try {
    await need(host, id);
    return used;
  } catch (error) {
    used[Symbol.dispose]();
    throw error;
  }
};

/** Takes a workspace for a change of what it is to whom. `verb` completes "Cannot …". */
export const takeWs = (host: Host, { id, name }: { id: string; name: string }, verb: string): Disposable => {
  const taken = host.uses.take(id);
  if (taken !== undefined) return taken;
  throw new Fault('in_use', `Cannot ${verb} workspace '${name}': it is being copied or changed just now.`);
};

/** Takes an asset for its removal. `name` completes "Cannot remove …". */
export const takeAsset = (host: Host, { id }: { id: string }, name: string): Disposable => {
  const taken = host.uses.take(id);
  if (taken === undefined) throw new Fault('in_use', `Cannot remove ${name}: it is being read just now.`);
  return taken;
};
