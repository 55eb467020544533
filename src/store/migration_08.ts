/** What a VM is given for its first boot, and how that went. */
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
`;
