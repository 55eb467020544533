/** A VM as it is on this host. */
import { join } from 'node:path';
import type { GuestNow, VmDisk, VmInspect } from '../api/vm_inspect.ts';
import type { VmRecord } from '../store/store.ts';
import { lastBoot } from '../vmm/console_view.ts';
import { VMM_LOG } from '../vmm/run_dir.ts';
import { usualAsset } from './asset.ts';
import { needVm } from './find.ts';
import type { Host, Live } from './host.ts';
import { inspectImage } from './image_chain.ts';
import { liveOf } from './live.ts';
import { consoleLog, runDir } from './paths.ts';
import { uptimeOf } from './top.ts';
import { usageOf } from './usage.ts';
import { deviceName, wsOfVm } from './ws_view.ts';

export const inspectVm = async (host: Host, ref: string): Promise<VmInspect> => {
  const vm = await needVm(host, ref);
  const live = liveOf(host, vm.id);
  const [usage, now, disks, image, kernel, provision, boots] = await Promise.all([
    live && usageOf(host, live),
    live && nowOf(live),
    disksOf(host, vm.id),
    imageOf(host, vm.image_id),
    kernelOf(host, vm.kernel_id),
    provisionOf(host, vm),
    live?.console.boot ?? lastBoot(consoleLog(host.paths, vm.id)),
  ]);
  const { id, name, state, guest, pid, boot_ms, started_at_ms, vcpus, memory_mib, guest_facts, last_exit, error } = vm;
  return {
    id,
    name,
    state,
    guest,
    pid,
    api_socket: live?.machine.api_socket ?? null,
    log_path: consoleLog(host.paths, id),
    vmm_log_path: join(runDir(host.paths, id), VMM_LOG),
    cgroup: live?.machine.cgroup ?? null,
    boots,
    boot_ms,
    started_at_ms,
    uptime_ms: uptimeOf(vm),
    vcpus,
    memory_mib,
    vmm: vm.runs_on === null ? null : { kind: vm.runs_on, version: vm.vmm_version, accel: vm.accel },
    usage: usage ?? null,
    disks,
    kernel,
    image,
    guest_facts,
    guest_now: now ?? null,
    provision,
    restart: {
      policy: vm.restart,
      auto_start: vm.auto_start,
      at_ms: vm.restart_at_ms,
      count: vm.restart_count,
    },
    last_exit,
    error,
    tags: vm.tags,
  };
};

/** One that does not answer is waited for no longer than that. */
const NOW_MS = 2000;

/** Never rejects. */
const nowOf = async ({ guest, held, gone }: Live): Promise<GuestNow | undefined> => {
  if (guest.state !== 'ready' || held !== undefined) return undefined;
  return guest.now(AbortSignal.any([gone.signal, AbortSignal.timeout(NOW_MS)])).catch(() => undefined);
};

/** Names, no contents. */
const provisionOf = async (host: Host, vm: VmRecord): Promise<VmInspect['provision']> => {
  const given = vm.provision && (await host.store.findProvision(vm.id));
  if (vm.provision === null || given == null) return null;
  const { files, first_boot } = given;
  const names = { files: files.map(file => file.path), env: Object.keys(vm.env), first_boot: first_boot !== null };
  return { ...vm.provision, ...names };
};

/** The root first, then as they were attached. */
const disksOf = async (host: Host, vm_id: string): Promise<VmDisk[]> => {
  const all = await wsOfVm(host, vm_id);
  return all.map(({ id, name, role, position, mount, read_only, size_bytes, path, ...rest }) => ({
    ws_id: id,
    name,
    role: role ?? 'data',
    device: `/dev/${deviceName(position ?? 0)}`,
    mount: role === 'root' ? '/' : mount,
    size_bytes,
    used_bytes: rest.used_bytes,
    own_bytes: rest.own_bytes,
    shared_bytes: rest.shared_bytes,
    read_only,
    path,
  }));
};

const imageOf = async (host: Host, id: string | null): Promise<VmInspect['image']> => {
  const image = id === null ? undefined : await host.store.findImage(id);
  return image === undefined ? null : inspectImage(host, image);
};

const kernelOf = async (host: Host, id: string | null): Promise<VmInspect['kernel']> => {
  const kernel = id === null ? await usualAsset(host, 'kernel') : await host.store.assets.kernel.find(id);
  return kernel === undefined ? null : { id: kernel.id, version: kernel.version };
};
