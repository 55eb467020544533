/** Disks of a VM have an order that is written down, and a place in the guest; a workspace may be a snapshot of another. */
export const SIXTH = `
alter table workspaces add column source_ws_id text;
alter table workspaces add column position integer;
alter table workspaces add column mount text check (mount is null or role = 'data');
alter table workspaces add column read_only integer not null default 0 check (read_only in (0, 1));
update workspaces set position = case role when 'root' then 0 else (
  select count(*) from workspaces as other where other.vm_id = workspaces.vm_id and other.role = 'data'
    and (other.created_at_ms, other.id) <= (workspaces.created_at_ms, workspaces.id)
) end where vm_id is not null;
create unique index workspaces_position on workspaces (vm_id, position);
`;
