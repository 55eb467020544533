import { SIXTH } from './migration_06.ts';
import { SEVENTH } from './migration_07.ts';
import { EIGHTH } from './migration_08.ts';

/**
 * The shape of the database, as numbered steps that only ever go forward and keep the data. A step that has been released is
 * never edited; the next one is added. `user_version` of the database is the number of its last step.
 */
export interface Migration {
  version: number;
  sql: string;
}

/**
 * Columns have the names of the contract's fields. Nested objects are JSON text. IDs of things that may be removed while the
 * record stays (`vms.image_id`, `images.rootfs_id`) are no foreign keys. The two that point at each other are checked at commit.
 */
const FIRST = `
create table kernels (
  id text primary key,
  version text not null,
  arch text not null,
  provider text not null,
  package text not null,
  sha256 text not null,
  size_bytes integer not null,
  modules_sha256 text not null,
  modules_size_bytes integer not null,
  created_at_ms integer not null
) strict;

create table rootfs (
  id text primary key,
  distro text not null,
  version text not null,
  arch text not null,
  provider text not null,
  sha256 text not null,
  size_bytes integer not null,
  created_at_ms integer not null
) strict;

create table images (
  id text primary key,
  name text not null unique,
  arch text not null,
  init text not null,
  os text not null,
  rootfs_id text,
  agent_version text not null,
  sha256 text not null,
  size_bytes integer not null,
  created_at_ms integer not null
) strict;

create table vms (
  id text primary key,
  name text not null unique,
  state text not null,
  guest text,
  vcpus integer not null,
  memory_mib integer not null,
  image_id text,
  kernel_id text references kernels (id),
  root_ws_id text references workspaces (id) deferrable initially deferred,
  vmm text,
  accel text,
  pid integer,
  guest_facts text check (json_valid(guest_facts)),
  error text check (json_valid(error)),
  last_exit text check (json_valid(last_exit)),
  created_at_ms integer not null,
  started_at_ms integer,
  stopped_at_ms integer,
  run text check (json_valid(run)),
  host_uid integer unique
) strict;
create index vms_kernel on vms (kernel_id);

create table vm_history (
  seq integer primary key autoincrement,
  vm_id text not null references vms (id) on delete cascade,
  at_ms integer not null,
  "from" text,
  "to" text not null,
  why text not null,
  actor text not null
) strict;
create index vm_history_vm on vm_history (vm_id, seq);

create table workspaces (
  id text primary key,
  name text not null unique,
  image_id text references images (id),
  size_bytes integer not null,
  vm_id text references vms (id) deferrable initially deferred,
  role text check (role in ('root', 'data')),
  owned integer not null check (owned in (0, 1)),
  created_at_ms integer not null,
  check ((vm_id is null) = (role is null)),
  check (vm_id is not null or owned = 0)
) strict;
create index workspaces_image on workspaces (image_id);
create index workspaces_vm on workspaces (vm_id);
create unique index workspaces_root on workspaces (vm_id) where role = 'root';

create table jobs (
  id text primary key,
  kind text not null,
  subject text not null,
  state text not null,
  progress text check (json_valid(progress)),
  error text check (json_valid(error)),
  result_id text,
  created_at_ms integer not null,
  started_at_ms integer,
  ended_at_ms integer
) strict;
create index jobs_state on jobs (state);
`;

/** What is chosen for a VM beside its size, the VMM of its last start, and what the daemon itself remembers. */
const SECOND = `
alter table vms rename column vmm to runs_on;
alter table vms add column vmm text;
alter table vms add column vmm_version text;
alter table vms add column vsock_cid integer not null default 0;
update vms set vsock_cid = (select count(*) + 2 from vms as other where other.rowid <= vms.rowid);
create unique index vms_vsock_cid on vms (vsock_cid);
alter table vms add column restart text not null default 'never';
alter table vms add column restart_at_ms integer;
alter table vms add column restart_count integer not null default 0;
alter table vms add column auto_start integer not null default 0;
alter table vms add column start_order integer not null default 0;
alter table vms add column disk_rate_bytes integer;
alter table vms add column disk_rate_ops integer;
alter table vms add column tags text not null default '{}' check (json_valid(tags));
create table notes (
  name text primary key,
  value text not null
) strict;
`;

/** How long the last boot took. */
const THIRD = `
alter table vms add column boot_ms integer;
`;

/**
 * Providers, Firecrackers, and of every asset where it came from and how that was proven. What there is came from the signed packages of
 * Debian. Kernels are rebuilt, for a column of theirs may be null from now on.
 */
const FOURTH = `
create table providers (
  id text primary key,
  name text not null unique,
  kind text not null check (kind in ('kernel', 'rootfs', 'firecracker')),
  type text not null,
  config text not null check (json_valid(config)),
  pipeline text not null check (json_valid(pipeline)),
  keys text not null check (json_valid(keys)),
  unverified integer not null check (unverified in (0, 1)),
  is_default integer not null check (is_default in (0, 1)),
  shipped integer not null check (shipped in (0, 1)),
  created_at_ms integer not null,
  updated_at_ms integer not null
) strict;
create unique index providers_default on providers (kind) where is_default = 1;

create table firecrackers (
  id text primary key,
  version text not null,
  arch text not null,
  provider text,
  source text not null,
  proofs text not null check (json_valid(proofs)),
  sha256 text not null,
  size_bytes integer not null,
  is_default integer not null check (is_default in (0, 1)),
  created_at_ms integer not null,
  jailer_sha256 text,
  jailer_size_bytes integer
) strict;
create unique index firecrackers_default on firecrackers (is_default) where is_default = 1;

create table kernels_new (
  id text primary key,
  version text not null,
  arch text not null,
  provider text,
  source text not null,
  proofs text not null check (json_valid(proofs)),
  sha256 text not null,
  size_bytes integer not null,
  is_default integer not null check (is_default in (0, 1)),
  created_at_ms integer not null,
  modules_sha256 text,
  modules_size_bytes integer,
  check ((modules_sha256 is null) = (modules_size_bytes is null))
) strict;
insert into kernels_new
  select id, version, arch, provider, package, '["apt"]', sha256, size_bytes, 0, created_at_ms, modules_sha256, modules_size_bytes
  from kernels;
drop table kernels;
alter table kernels_new rename to kernels;
create unique index kernels_default on kernels (is_default) where is_default = 1;

create table rootfs_new (
  id text primary key,
  distro text not null,
  version text not null,
  arch text not null,
  provider text,
  source text not null,
  proofs text not null check (json_valid(proofs)),
  sha256 text not null,
  size_bytes integer not null,
  is_default integer not null check (is_default in (0, 1)),
  created_at_ms integer not null
) strict;
insert into rootfs_new
  select id, distro, version, arch, 'debian-rootfs', 'packages of ' || distro || ' ' || version, '["apt"]', sha256, size_bytes, 0, created_at_ms
  from rootfs;
drop table rootfs;
alter table rootfs_new rename to rootfs;
create unique index rootfs_default on rootfs (is_default) where is_default = 1;
`;

/** Templates and builds. Images are rebuilt, for an imported one has no agent that we know of. */
const FIFTH = `
create table templates (
  id text primary key,
  name text not null unique,
  version integer not null,
  source_type text not null check (source_type in ('rootfs', 'image')),
  source text not null,
  sha256 text,
  overlays text not null check (json_valid(overlays)),
  size_bytes integer,
  init text not null,
  environment text not null check (json_valid(environment)),
  created_at_ms integer not null,
  updated_at_ms integer not null
) strict;

create table builds (
  id text primary key,
  image_name text not null,
  template_id text,
  template text,
  template_version integer,
  source_type text not null check (source_type in ('rootfs', 'image')),
  source text not null,
  sha256 text,
  overlays text not null check (json_valid(overlays)),
  size_bytes integer,
  init text not null,
  environment text not null check (json_valid(environment)),
  base_image_id text,
  rootfs_id text,
  state text not null check (state in ('building', 'success', 'failed', 'canceled')),
  job_id text not null,
  image_id text,
  inputs_sha256 text,
  image_sha256 text,
  error text check (json_valid(error)),
  created_at_ms integer not null,
  ended_at_ms integer,
  check ((state = 'success') = (image_id is not null)),
  check ((state = 'building') = (ended_at_ms is null))
) strict;
create index builds_template on builds (template_id);
create index builds_state on builds (state);

create table images_new (
  id text primary key,
  name text not null unique,
  arch text not null,
  init text not null,
  os text not null,
  build_id text,
  rootfs_id text,
  agent_version text,
  warning text,
  sha256 text not null,
  size_bytes integer not null,
  created_at_ms integer not null
) strict;
insert into images_new
  select id, name, arch, init, os, null, rootfs_id, agent_version, null, sha256, size_bytes, created_at_ms from images;
drop table images;
alter table images_new rename to images;
create index images_build on images (build_id);
`;

const STEPS = [FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH, EIGHTH];

export const MIGRATIONS: readonly Migration[] = STEPS.map((sql, i) => ({ version: i + 1, sql }));
