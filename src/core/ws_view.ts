/** Workspaces as people want to see them: with names, and with what they take of the host. */
import type { Space } from '../api/common.ts';
import type { Workspace, WsInspect } from '../api/ws.ts';
import type { Host } from './host.ts';

/** The name of a disk in the guest. */
export const deviceName = (position: number): string => `vd${String.fromCharCode('a'.charCodeAt(0) + position)}`;

type Names = ReadonlyMap<string, string>;

/** Of VMs and images, by ID. */
const allNames = async ({ store }: Host): Promise<Names> => {
  const named = (await Promise.all([store.listVms(), store.listImages()])).flat();
  return new Map(named.map(({ id, name }) => [id, name]));
};

const UNKNOWN: Space = { used_bytes: null, own_bytes: null, shared_bytes: null };

const viewOf = (host: Host, names: Names, ws: Workspace, space = UNKNOWN): WsInspect => ({
  ...ws,
  image_name: names.get(ws.image_id ?? '') ?? null,
  vm_name: names.get(ws.vm_id ?? '') ?? null,
  ...space,
  path: host.disks.path('workspaces', ws.id),
});

const spaceOf = (host: Host, all: readonly Workspace[]): Promise<Space[]> =>
  host.disks.space(all.map(({ id }) => ({ kind: 'workspaces', id })));

const viewAll = async (host: Host, all: readonly Workspace[]): Promise<WsInspect[]> => {
  const [names, space] = await Promise.all([allNames(host), spaceOf(host, all)]);
  return all.map((ws, i) => viewOf(host, names, ws, space[i]));
};

/** Newest first. */
export const listWs = async (host: Host): Promise<WsInspect[]> => viewAll(host, await host.store.listWs());

/** In the order of the disks. */
export const wsOfVm = async (host: Host, vm_id: string): Promise<WsInspect[]> =>
  viewAll(host, await host.store.wsOfVm(vm_id));

export const inspectWs = async (host: Host, ws: Workspace): Promise<WsInspect> => {
  const [names, [space]] = await Promise.all([allNames(host), spaceOf(host, [ws])]);
  return viewOf(host, names, ws, space);
};
