/** Everything a handler may touch, in one object that `daemon/boot.ts` makes. */
import type { OpOut } from '../api/ops.ts';
import type { VmUsage } from '../api/vm_inspect.ts';
import type { Disks } from '../disk/disk.ts';
import type { Guest } from '../guest/guest.ts';
import type { Cgroups } from '../lib/cgroup.ts';
import type { Joined } from '../lib/joined.ts';
import type { Locks } from '../lib/lock.ts';
import type { Log } from '../lib/log.ts';
import type { Slots } from '../lib/slots.ts';
import type { Step } from '../lib/step.ts';
import type { Uses } from '../lib/uses.ts';
import type { StateStore } from '../store/store.ts';
import type { Console } from '../vmm/console.ts';
import type { Machine, Vmms } from '../vmm/machine.ts';
import type { Downloads } from './downloads.ts';
import type { Events } from './events.ts';
import type { Holds } from './holds.ts';
import type { JobRunner } from './jobs.ts';
import type { Metrics } from './metrics.ts';
import type { Paths } from './paths.ts';
import type { Restarts, RestartTimes } from './restarts.ts';

export interface Host {
  readonly version: string;
  readonly started_at_ms: number;
  readonly paths: Paths;
  readonly log: Log;
  /** Around every effect on the world outside. */
  readonly step: Step;
  readonly store: StateStore;
  readonly disks: Disks;
  readonly vmms: Vmms;
  /** Where VMMs get groups of their own. */
  readonly cgroups: Cgroups;
  /** One lock a VM, by its ID. */
  readonly locks: Locks;
  /** Kernels, archives and images that are being read, by ID. */
  readonly uses: Uses;
  /** Assets that are being fetched, by what they are. */
  readonly downloads: Downloads;
  /** For GitHub's API. */
  readonly github_token: string | undefined;
  /** The API that the token is for; undefined: GitHub's own. */
  readonly github_api: string | undefined;
  /** Initramfs files that are being made, by path. */
  readonly initrds: Joined<void>;
  /** Images of templates that are asked for, by template. */
  readonly ensures: Joined<OpOut<'image.ensure'>>;
  readonly events: Events;
  readonly metrics: Metrics;
  readonly jobs: JobRunner;
  /** Turns of builds: so many at once. */
  readonly builds: Slots;
  /** Questions to VMMs that are not answered yet. */
  readonly usages: Joined<VmUsage>;
  /** The VMs whose VMM this daemon holds, by ID; also those whose end is being stored. */
  readonly live: Map<string, Live>;
  /** VMs with a VMM that could not be ended when this daemon started. */
  readonly strays: Set<string>;
  /** Alarms of the starts that the daemon owes. */
  readonly restarts: Restarts;
  readonly restart_times: RestartTimes;
  /** Who holds ephemeral VMs. */
  readonly holds: Holds;
  readonly agent: AgentFiles;
  /** First host uid of VMMs where the daemon is root; null: VMMs run as the daemon's own user. */
  readonly first_host_uid: number | null;
  /** Aborted when the daemon stops; running VMs are let go, not ended. */
  readonly closing: AbortSignal;
}

/** The guest agent that this daemon puts into images and initramfs. */
export interface AgentFiles {
  readonly path: string;
  readonly version: string;
  readonly sha256: string;
}

/** A VM whose VMM this daemon holds; its rules are in `live.ts`. */
export interface Live {
  readonly vm_id: string;
  readonly machine: Machine;
  readonly guest: Guest;
  readonly console: Console;
  /** While it is taken to stand still: its guest is not asked for anything. */
  held: Disposable | undefined;
  /** Ends the looks whether it has gone down, which are made as long as it does not answer. */
  attended: AbortController | undefined;
  /** Who stores the end of this VMM; undefined: nobody has seen it yet. */
  end_owner: 'stop' | 'watcher' | undefined;
  /** Settled when nothing is left to be done: the end is stored, or the VM was deleted. */
  readonly end_stored: PromiseWithResolvers<void>;
  /** Settled when the state `running` is on disk; only then may its end be stored. */
  readonly stored: PromiseWithResolvers<void>;
  /** Settled when the newest state of the guest is stored; a guest that came to be ready has its clock then. */
  guest_stored: Promise<void>;
  /** Of the start, `performance.now()`; null: adopted. */
  times: StartTimes | null;
  /** Its guest was ready since its start; of an adopted one as the record says. */
  rang: boolean;
  /** How a stop ended it, though that could not be stored yet. */
  stopped_how: string | undefined;
  /** What the guest said before it went down. */
  ending: { kind: 'poweroff' | 'reboot' | 'halt' | 'down'; by: 'host' | 'guest' } | undefined;
  /** What the VM was given for all that is run in it. */
  readonly env: Readonly<Record<string, string>>;
  /** Settled when what it was given is done or has failed, as its record says; undefined: its guest has not answered yet. */
  provisioned: Promise<void> | undefined;
  /** What size terminals have, as far as this daemon has set it; by their command. */
  readonly sizes: Map<string, { cols: number; rows: number }>;
  /** Aborted when the VMM has ended or is let go. */
  readonly gone: AbortController;
}

/** When a start reached what; all by `performance.now()`. */
export interface StartTimes {
  asked: number;
  spawned: number;
  bell: number | null;
}
