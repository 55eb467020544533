/** What a machine is to the rest of Nexus, whichever VMM runs it. */
import type { Duplex } from 'node:stream';
import type { Accel, VmmKind } from '../api/vm.ts';
import type { ProcRef } from '../lib/proc.ts';

export interface DiskSpec {
  id: string;
  path: string;
  read_only: boolean;
}

export interface MachineSpec {
  /** The VM's id, `vm_…`. */
  id: string;
  /** The VM's own run directory, absolute. Made if it is not there; sockets in it belong to the VMM alone. */
  dir: string;
  vcpus: number;
  memory_mib: number;
  /** Path of an ELF `vmlinux`. */
  kernel: string;
  initrd: string;
  /** Extra kernel parameters, such as `nexus.root=/dev/vda`; the driver adds its own, `nexus.transport` among them. */
  cmdline: string[];
  /** In this order `/dev/vda`, `/dev/vdb`, … */
  disks: DiskSpec[];
  /** Limits for each disk, a second; null: none. */
  disk_rate_bytes: number | null;
  disk_rate_ops: number | null;
  /** The guest's address on its vsock, where the VMM has one; from 3 on. */
  vsock_cid: number;
  /** Run the VMM as this uid and gid; only where we are root. */
  uid: number | null;
  /** The program that was admitted, which may not be the driver's newest any more; undefined: that one. */
  program?: string;
}

export interface MachineEnd {
  exit_code: number | null;
  signal: string | null;
  /** False: the process was adopted, its status cannot be had. */
  known: boolean;
  /** The guest reset itself (its way to end), seen on the control socket before the end. */
  guest_reset: boolean;
  guest_panicked: boolean;
  /** The last lines of the VMM's stderr, safe to print. */
  last_words: string[];
}

/** What a machine has used since its VMM was started. */
export interface MachineUsage {
  /** Of all threads of the VMM, the guest's processors among them. */
  cpu_ms: number;
  /** Of the host's memory, the guest's pages among them. */
  memory_bytes: number;
  /** By the guest, of all disks; null: the VMM has not said yet. What it said while no daemon was there may be missing. */
  disk_read_bytes: number | null;
  disk_write_bytes: number | null;
}

export interface Machine {
  readonly kind: VmmKind;
  readonly accel: Accel;
  /** The socket on which the VMM takes orders, absolute. */
  readonly api_socket: string;
  readonly proc: ProcRef;
  /** The group of its own in which the VMM runs; null: it has none. */
  readonly cgroup: string | null;
  /** Settles when the process is gone and its sockets are removed. Never rejects; stays pending after `release`. */
  readonly ended: Promise<MachineEnd>;
  /** A fresh control connection, whatever came before. The guest may take its time to open it: bring a deadline. */
  openControl(signal: AbortSignal): Promise<Duplex>;
  /** The handler gets each new egress stream; one that came before there was a handler waits for it. */
  onEgress(handler: (stream: Duplex) => void): void;
  pause(): Promise<void>;
  resume(): Promise<void>;
  paused(): Promise<boolean>;
  /** Presses Ctrl-Alt-Del, for a guest whose agent is silent; false: this machine has no keyboard. */
  ctrlAltDel(): Promise<boolean>;
  usage(): Promise<MachineUsage>;
  /** Tells the guest how long the disk of that number (0 is /dev/vda) is now; the file is as long already. */
  resizeDisk(index: number, size_bytes: number): Promise<void>;
  /** Sends a signal to the VMM; nothing happens if it is gone. */
  signal(signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  /** Lets go (sockets, timers) without touching the guest: the daemon ends, the VM lives on. */
  release(): Promise<void>;
}

export interface VmmFacts {
  kind: VmmKind;
  /** Null: this driver can start no VM here; `why` says why, `hint` what mends it. */
  accel: Accel | null;
  program: string;
  version: string | null;
  /** Why this accelerator or none, one sentence. */
  why: string;
  /** What would make it faster, or possible. */
  hint?: string;
  /** Rate of the host's time stamp counter; emulated guests cannot calibrate it on a busy host. */
  tsc_khz: number | null;
}

/** A VMM process that was found on the host. */
export interface Found {
  kind: VmmKind;
  vm_id: string;
  proc: ProcRef;
  dir: string;
}

export interface AdoptOptions {
  id: string;
  dir: string;
  vsock_cid: number;
  proc: ProcRef;
  accel: Accel;
}

export interface Vmm {
  readonly kind: VmmKind;
  facts(): VmmFacts;
  /** Asks again: a program may have been installed meanwhile, KVM mended. */
  refresh(): Promise<VmmFacts>;
  /** Resolves when the VMM has answered and the guest runs. If it throws, process and sockets are gone. */
  start(spec: MachineSpec, signal: AbortSignal, onSpawn: (proc: ProcRef) => Promise<void>): Promise<Machine>;
  /** Takes over a living VMM. One that does not answer is taken over too; its channels come when it does. */
  adopt(options: AdoptOptions, signal: AbortSignal): Promise<Machine>;
  /** Living VMMs whose working directory lies in `run_root`, with or without a record of theirs. */
  find(run_root: string): Promise<Found[]>;
}

/** The drivers of this host. All of them find and adopt, also those that can start nothing here. */
export interface Vmms {
  readonly all: readonly Vmm[];
  of(kind: VmmKind): Vmm;
  /** The driver for a VM that wants this VMM, or any. Throws `host`, with what mends it, where there is none. */
  choose(wish: VmmKind | null): Promise<Vmm>;
  find(run_root: string): Promise<Found[]>;
}
