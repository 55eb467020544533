/** VMs that last as long as somebody holds them. */
export const SEVENTH = `
alter table vms add column ephemeral integer not null default 0 check (ephemeral in (0, 1));
`;
