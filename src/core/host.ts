/** Everything a handler may touch, in one object that `daemon/boot.ts` makes. */
import type { Disks } from '../disk/disks.ts';
import type { Locks } from '../lib/lock.ts';
import type { Log } from '../lib/log.ts';
import type { StateStore } from '../store/store.ts';
import type { Vmm } from '../vmm/machine.ts';
import type { Events } from './events.ts';
import type { JobRunner } from './jobs.ts';
import type { Live } from './live.ts';
import type { Paths } from './paths.ts';

export interface Host {
  readonly version: string;
  readonly started_at_ms: number;
  readonly paths: Paths;
  readonly log: Log;
  readonly store: StateStore;
  readonly disks: Disks;
  readonly vmm: Vmm;
  /** One lock a VM, by its ID. */
  readonly locks: Locks;
  readonly events: Events;
  readonly jobs: JobRunner;
  /** The VMs whose VMM this daemon holds, by ID. */
  readonly live: Map<string, Live>;
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
