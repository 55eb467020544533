/** What a VM is given for its first boot, and how that went; which disk is a snapshot of which, removed ones too. */
export const EIGHTH = `
alter table vms add column env text not null default '{}' check (json_valid(env));
alter table vms add column provision text check (json_valid(provision));
alter table vms add column provision_run text check (json_valid(provision_run));
create table vm_provisions (
  vm_id text primary key references vms (id) on delete cascade,
  files text not null check (json_valid(files)),
  first_boot text,
  first_boot_timeout_ms integer not null
) strict;
create table ws_lines (ws_id text primary key, source_ws_id text not null) strict;
insert into ws_lines select id, source_ws_id from workspaces where source_ws_id is not null;
`;
