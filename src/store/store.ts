/**
 * The state of a daemon: one interface a noun, `StateStore` is their sum. Records are the contract's own objects; what only
 * the daemon may see stands beside them (`VmRecord.run`). Behind it: SQLite, in this room alone.
 *
 * Faults: `exists` (a name is taken), `not_found`, `bad_state` (an illegal transition), `in_use`, `no_room` (the disk is full).
 */
import type { AssetKind } from '../api/asset.ts';
import type { Build, BuildState } from '../api/build.ts';
import type { Firecracker } from '../api/firecracker.ts';
import type { Image } from '../api/image.ts';
import type { Job, JobState } from '../api/job.ts';
import type { Kernel } from '../api/kernel.ts';
import type { Provider } from '../api/provider.ts';
import type { GivenFile } from '../api/provision.ts';
import type { Rootfs } from '../api/rootfs.ts';
import type { Template } from '../api/template.ts';
import type { Vm, VmHistoryEntry } from '../api/vm.ts';
import type { VmState } from '../api/vm_state.ts';
import type { Workspace } from '../api/ws.ts';

/** What the daemon must know of a VMM process to find, adopt or end it; null before the first spawn of a start. */
export interface VmRun {
  pid: number;
  start_ticks: number;
  boot_id: string;
  /** The Firecracker of the store that it is. */
  firecracker_id?: string | undefined;
  /** The kernel that it was started with, which the VM itself need not name. */
  kernel_id?: string | undefined;
}

/** How far the daemon came with what a VM was given. */
export interface ProvisionRun {
  /** The root that it is for. */
  ws_id: string | null;
  /** Written before the script is asked for: from then on it may have run. Which agent, in which boot, was to run it. */
  begun: { at_ms: number; agent_id: string } | null;
}

export interface VmRecord extends Vm {
  run: VmRun | null;
  /** Of all that is run in it. Not shown: there may be secrets. */
  env: Record<string, string>;
  provision_run: ProvisionRun | null;
  /** Host uid of its VMM where the daemon is root, unique among VMs; null otherwise. */
  host_uid: number | null;
}

/** Fields of a VM that may be written; `state` only through `transitionVm`, `root_ws_id` only by attaching and detaching. */
export type VmPatch = Partial<Omit<VmRecord, 'id' | 'state' | 'root_ws_id' | 'created_at_ms' | 'vsock_cid'>>;

/** What a VM is given for its first boot. */
export interface Provision {
  files: GivenFile[];
  first_boot: string | null;
  first_boot_timeout_ms: number;
}

/** What the store allocates: the host's uid and the vsock address, unique among VMs. */
export type NewVm = Omit<VmRecord, 'host_uid' | 'vsock_cid'>;

export interface Transition {
  to: VmState;
  why: string;
  actor: string;
  patch?: VmPatch;
}

export interface VmFilter {
  state?: VmState;
  /** NAME=VALUE, or NAME alone; a VM must have all of them. */
  tags?: readonly string[];
}

export interface VmStore {
  /**
   * Inserts a VM and, in the same transaction, its new root workspace where one is given; without one, a `root_ws_id` names an
   * existing workspace, which is attached as root (`in_use` if it is attached already). Writes the first row of its history.
   * Keeps the `provision`, what the VM is given for its first boot.
   * Allocates `host_uid`, the lowest free one from `first_host_uid` on, where that is given, and `vsock_cid`, the lowest free one from 3 on.
   */
  insertVm(
    vm: NewVm,
    options: { ws?: Workspace; first_host_uid?: number; provision?: Provision | undefined },
  ): Promise<VmRecord>;
  /** What it was given, as it was made. */
  findProvision(vm_id: string): Promise<Provision | undefined>;
  findVm(ref: string): Promise<VmRecord | undefined>;
  /** Newest first. */
  listVms(filter?: VmFilter): Promise<VmRecord[]>;
  /** The only writer of `state`: checks VM_TRANSITIONS against the state on disk and writes the history row in the same transaction. */
  transitionVm(id: string, transition: Transition): Promise<VmRecord>;
  patchVm(id: string, patch: VmPatch): Promise<VmRecord>;
  /**
   * The same for what is true only as long as this host runs: it outlives the daemon, a loss of power may take it (and no more
   * than it). Does not wait for the disk.
   */
  noteVm(id: string, patch: VmPatch): Promise<VmRecord>;
  /** Removes a VM, its history, and the workspaces it owns (detached and kept with `keep_disk`); gives the removed workspaces. */
  removeVm(id: string, options: { keep_disk: boolean }): Promise<Workspace[]>;
  /** The newest first; the newest 1,000 are kept. */
  vmHistory(id: string, limit: number): Promise<VmHistoryEntry[]>;
}

/** What the daemon remembers of itself from one run to the next. */
export interface NoteStore {
  findNote(name: string): Promise<string | undefined>;
  writeNote(name: string, value: string): Promise<void>;
  /**
   * Notes that the disk of that ID is a leftover as long as it has no record. The record's making forgets this, its removal notes it, each
   * in its own transaction. Does not wait for the disk: without the note a leftover stays, and nothing is lost.
   */
  noteDisk(id: string): Promise<void>;
  forgetDisk(id: string): Promise<void>;
  notedDisks(): Promise<string[]>;
}

/** What a workspace is to be to a VM. */
export interface Attachment {
  role: 'root' | 'data';
  /** Data disks only, as `read_only`. */
  mount?: string | null;
  read_only?: boolean;
  owned?: boolean;
}

export interface WorkspaceStore {
  insertWs(ws: Workspace): Promise<void>;
  findWs(ref: string): Promise<Workspace | undefined>;
  /** Newest first. */
  listWs(filter?: { image_id?: string }): Promise<Workspace[]>;
  /** It and what it is a snapshot of, and so on, be they removed or not. */
  lineOf(id: string): Promise<string[]>;
  /** By their position: the root, /dev/vdb, … */
  wsOfVm(vm_id: string): Promise<Workspace[]>;
  /**
   * Attaches in one transaction, a data disk behind those that the VM has: `in_use` if it is attached already, the VM has a root and
   * `role` is root, or another disk at `mount`; `invalid` if it has as many as it can have. Keeps `vm.root_ws_id` in step.
   */
  attachWs(id: string, vm_id: string, how: Attachment): Promise<Workspace>;
  resizeWs(id: string, size_bytes: number): Promise<Workspace>;
  /** Detaches; the workspace then belongs to nobody (`owned` false), and data disks behind it move up. */
  detachWs(id: string): Promise<Workspace>;
  /** `in_use` while attached. */
  removeWs(id: string): Promise<void>;
}

export interface ImageStore {
  /** `exists` if an image or a template has the name. */
  insertImage(image: Image): Promise<void>;
  /** By ID, by name, or by a template: its newest image, by the version of the template and then by its age. */
  findImage(ref: string): Promise<Image | undefined>;
  listImages(): Promise<Image[]>;
  /** Images that were built of templates, those that were removed too: of each template the newest first, as `findImage` has it. */
  imagesOfTemplates(): Promise<{ image: Image; template_id: string; template: string }[]>;
  /** A workspace came from it, or a template builds on it. */
  imageIsNeeded(id: string): Promise<boolean>;
  /** `in_use` while a workspace came from it, or a template builds on it; with `outdated`, also where its template has no newer one. */
  removeImage(id: string, only?: { outdated?: boolean }): Promise<void>;
}

export interface TemplateStore {
  /** `exists` if a template or an image has the name. */
  insertTemplate(template: Template): Promise<void>;
  findTemplate(ref: string): Promise<Template | undefined>;
  /** Newest first. */
  listTemplates(): Promise<Template[]>;
  /** Writes what `change` gives; where that is another blueprint, as the next version. */
  updateTemplate(id: string, change: (template: Template) => Template): Promise<Template>;
  /** `in_use` while a build of it runs, or a template builds on its images. */
  removeTemplate(id: string): Promise<void>;
}

export interface BuildFilter {
  template_id?: string;
  state?: BuildState;
  limit: number;
}

/** What is found out about a build while it runs. */
export type BuildPatch = Partial<Pick<Build, 'overlays' | 'rootfs_id' | 'sha256'>>;

export interface BuildStore {
  insertBuild(build: Build): Promise<void>;
  /** By ID, or the newest of a template. */
  findBuild(ref: string): Promise<Build | undefined>;
  /** Newest first. */
  listBuilds(filter: BuildFilter): Promise<Build[]>;
  patchBuild(id: string, patch: BuildPatch): Promise<Build>;
  /** The image and the success of its build, both or neither. */
  finishBuild(id: string, image: Image, inputs_sha256: string, at_ms: number): Promise<void>;
  /** The end of a build without image; nothing if it has ended. */
  endBuild(
    id: string,
    end: Pick<Build, 'error'> & { state: 'failed' | 'canceled'; ended_at_ms: number },
  ): Promise<void>;
  /** Builds that a dead daemon left become `failed`; gives their IDs. */
  interruptBuilds(at_ms: number): Promise<string[]>;
  /** Drops ended builds without image beyond the newest `keep`. */
  pruneBuilds(keep: number): Promise<void>;
  /** A build that never began. */
  removeBuild(id: string): Promise<void>;
}

/** Assets of one kind. A version may be there more than once (a rebuilt package); the newest counts. */
export interface AssetTable<A> {
  /**
   * Gives the one that is in the store: this one, or one of the same name and content that was there before, whoever brought it.
   */
  insert(asset: A): Promise<A>;
  /** By ID, by version (root file systems: `distro:version`), or by a series of versions: its newest. */
  find(ref: string): Promise<A | undefined>;
  /** Newest first. */
  list(): Promise<A[]>;
  /** `in_use` if it is the default, or a VM or a template needs it. */
  remove(id: string): Promise<void>;
  /** The one default, or with `on` false none. */
  setDefault(id: string, on: boolean): Promise<A>;
}

export interface AssetOf {
  kernel: Kernel;
  rootfs: Rootfs;
  firecracker: Firecracker;
}

export type AssetStore = { readonly [K in AssetKind]: AssetTable<AssetOf[K]> };

/** A provider that comes with Nexus. */
export interface ShippedProvider extends Provider {
  /** Number of the shipment in which it came first, from 1 on. */
  since: number;
}

export interface ProviderStore {
  /** Brings what is shipped to where it is new; what was changed or removed stays so. */
  seedProviders(shipped: readonly ShippedProvider[]): Promise<void>;
  /** The first of its kind becomes its default. */
  insertProvider(provider: Provider): Promise<Provider>;
  findProvider(ref: string): Promise<Provider | undefined>;
  /** By kind, the default first. */
  listProviders(kind?: AssetKind): Promise<Provider[]>;
  updateProvider(id: string, change: (provider: Provider) => Provider): Promise<Provider>;
  setDefaultProvider(id: string): Promise<Provider>;
  /** `in_use` if it is the default of its kind. */
  removeProvider(id: string): Promise<void>;
}

export interface JobStore {
  insertJob(job: Job): Promise<void>;
  findJob(id: string): Promise<Job | undefined>;
  listJobs(filter: { state?: JobState; limit: number }): Promise<Job[]>;
  updateJob(id: string, patch: Partial<Omit<Job, 'id'>>): Promise<Job>;
  /** Jobs that a dead daemon left queued or running become `interrupted`; gives them. */
  interruptJobs(at_ms: number): Promise<Job[]>;
  /** Drops ended jobs beyond the newest `keep`; gives their IDs. */
  pruneJobs(keep: number): Promise<string[]>;
}

export interface StateStore
  extends VmStore,
    WorkspaceStore,
    ImageStore,
    TemplateStore,
    BuildStore,
    ProviderStore,
    JobStore,
    NoteStore,
    AsyncDisposable {
  readonly assets: AssetStore;
}
