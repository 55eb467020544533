/** Which modules of a kernel a microVM needs, what they depend on, and the archive that carries them into the initramfs. */
import type { CpioEntry } from './cpio.ts';
import { cpio, withFolders } from './cpio.ts';
import { elfSection } from './elf.ts';
import { moduleIndex, normalAlias } from './modindex.ts';

/** Loaded at boot, in this order, each after what it depends on. */
const BOOT = [
  'virtio_mmio',
  'virtio_blk',
  'virtio_console',
  'virtio_rng',
  'ext4',
  'vsock',
  'vmw_vsock_virtio_transport',
  'virtio_net',
];

/** Further ones that programs in the guest may ask for; those a kernel does not have are left out. */
const OTHERS = (
  'virtio_pci virtio_balloon virtio_scsi overlay tun fuse loop bridge br_netfilter veth dummy ' +
  'nf_tables nft_ct nft_nat nft_chain_nat nft_masq nft_redir nft_reject nft_reject_inet nft_reject_ipv4 nft_reject_ipv6 ' +
  'nft_log nft_limit nft_counter nft_fib nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_hash nft_numgen nft_compat nft_tproxy ' +
  'nft_socket nft_quota nf_conntrack_netlink nf_log_syslog ip_tables iptable_filter iptable_nat iptable_mangle ip6_tables ' +
  'ip6table_filter ip6table_nat ip6table_mangle x_tables xt_conntrack xt_addrtype xt_comment xt_mark xt_multiport xt_nat ' +
  'xt_MASQUERADE xt_REDIRECT xt_tcpudp xt_state xt_limit xt_owner xt_LOG ipt_REJECT ip6t_REJECT ip_set xt_set'
).split(' ');

/** What the guest protocol cannot do without, and the kernel option that gives it. */
export const NEEDED = new Map([
  ['virtio_mmio', 'CONFIG_VIRTIO_MMIO'],
  ['virtio_blk', 'CONFIG_VIRTIO_BLK'],
  ['virtio_console', 'CONFIG_VIRTIO_CONSOLE'],
  ['ext4', 'CONFIG_EXT4_FS'],
  ['vsock', 'CONFIG_VSOCKETS'],
  ['vmw_vsock_virtio_transport', 'CONFIG_VIRTIO_VSOCKETS'],
]);

export interface KernelModule {
  name: string;
  /** Below lib/modules/<release>, uncompressed: kernel/fs/ext4/ext4.ko */
  path: string;
  data: Buffer;
  depends: string[];
  aliases: string[];
}

/** `kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`: the kernel knows `-` and `_` as one. */
export const moduleName = (path: string): string =>
  path
    .slice(path.lastIndexOf('/') + 1)
    .replace(/\.ko(\.(xz|zst|gz))?$/, '')
    .replaceAll('-', '_');

/** A module from its ELF bytes: its section .modinfo holds `key=value` strings, each ended by a zero byte. */
export const parseModule = (path: string, data: Buffer): KernelModule => {
  const lines = (elfSection(data, '.modinfo') ?? Buffer.alloc(0)).toString('latin1').split('\0');
  const values = (key: string) => lines.filter(l => l.startsWith(`${key}=`)).map(l => l.slice(key.length + 1));
  const depends = values('depends')
    .flatMap(list => list.split(','))
    .filter(name => name !== '');
  return {
    name: moduleName(path),
    path: path.replace(/\.(xz|zst|gz)$/, ''),
    data,
    depends: depends.map(name => name.replaceAll('-', '_')),
    aliases: values('alias').filter(alias => /^[!-~]{1,500}$/.test(alias)),
  };
};

/**
 * The wanted modules and `more` that this kernel has as modules, and all that they depend on. `fetch` reads modules by name, in
 * rounds.
 */
export const closure = async (
  known: ReadonlySet<string>,
  more: readonly string[],
  fetch: (names: string[]) => Promise<KernelModule[]>,
): Promise<Map<string, KernelModule>> => {
  const found = new Map<string, KernelModule>();
  let next = [...new Set([...BOOT, ...OTHERS, ...more])].filter(name => known.has(name));
  while (next.length > 0) {
    for (const module of await fetch(next)) found.set(module.name, module);
    const needed = new Set([...found.values()].flatMap(m => m.depends));
    next = [...needed].filter(name => known.has(name) && !found.has(name));
  }
  return found;
};

/** The module's dependencies, deepest first, without itself. What is built in is no file and is left out. */
export const ordered = (modules: ReadonlyMap<string, KernelModule>, name: string): KernelModule[] => {
  const seen = new Set([name]);
  const out: KernelModule[] = [];
  const visit = (module: KernelModule | undefined): void => {
    for (const dep of module?.depends ?? []) {
      const found = modules.get(dep);
      if (seen.has(dep) || found === undefined) continue;
      seen.add(dep);
      visit(found);
      out.push(found);
    }
  };
  visit(modules.get(name));
  return out;
};

/** The modules to load at boot, each after what it depends on. */
export const bootOrder = (modules: ReadonlyMap<string, KernelModule>): KernelModule[] => [
  ...new Set(
    BOOT.flatMap(name => {
      const module = modules.get(name);
      return module === undefined ? [] : [...ordered(modules, name), module];
    }),
  ),
];

/** `/dev` nodes that load their module when they are opened: from the aliases `devname:net/tun` and `char-major-10-200`. */
const deviceName = (module: KernelModule): string[] => {
  const name = module.aliases.find(a => a.startsWith('devname:'))?.slice('devname:'.length);
  const [, kind, major, minor] =
    module.aliases.map(a => /^(char|block)-major-(\d+)-(\d+)$/.exec(a)).find(m => m !== null) ?? [];
  return name === undefined || kind === undefined ? [] : [`${module.name} ${name} ${kind[0]}${major}:${minor}`];
};

const text = (lines: readonly string[]): Buffer => Buffer.from(lines.map(line => `${line}\n`).join(''), 'latin1');

/**
 * The tables of modprobe, as depmod would make them for this set: text for BusyBox, an index for kmod. Dependencies stand nearest
 * first: modprobe loads a line from its end.
 */
const tables = (modules: ReadonlyMap<string, KernelModule>, builtin: readonly string[]): Map<string, Buffer> => {
  const sorted = [...modules.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  const deps = sorted.map(m => ({
    key: m.name,
    value: [
      `${m.path}:`,
      ...ordered(modules, m.name)
        .reverse()
        .map(d => d.path),
    ].join(' '),
  }));
  const aliases = sorted.flatMap(m => m.aliases.map(alias => ({ key: normalAlias(alias), value: m.name })));
  return new Map([
    ['modules.dep', text(deps.map(d => d.value))],
    ['modules.dep.bin', moduleIndex(deps)],
    ['modules.alias', text(aliases.map(a => `alias ${a.key} ${a.value}`))],
    ['modules.alias.bin', moduleIndex(aliases)],
    ['modules.builtin.bin', moduleIndex(builtin.map(name => ({ key: name, value: '' })))],
    ['modules.devname', text(sorted.flatMap(deviceName))],
  ]);
};

/** Names in the kernel's modules.builtin. */
export const builtinNames = (table: Buffer | undefined): string[] =>
  (table?.toString('latin1') ?? '')
    .split('\n')
    .filter(line => line.endsWith('.ko'))
    .map(moduleName);

/** The archive: lib/modules/<release>/… and lib/modules/nexus.load. `extra` are the kernel's own modules.* files. */
export const modulesCpio = (
  release: string,
  modules: ReadonlyMap<string, KernelModule>,
  extra: ReadonlyMap<string, Buffer>,
): Buffer => {
  const root = `lib/modules/${release}`;
  const file = (path: string, data: Buffer): CpioEntry => ({ path, type: 'file', mode: 0o644, data });
  const made = tables(modules, builtinNames(extra.get('modules.builtin')));
  const load = bootOrder(modules).map(m => `/${root}/${m.path}\n`);
  return cpio(
    withFolders([
      ...[...modules.values()].map(m => file(`${root}/${m.path}`, m.data)),
      ...[...extra, ...made].map(([name, data]) => file(`${root}/${name}`, data)),
      file('lib/modules/nexus.load', Buffer.from(load.join(''))),
    ]),
  );
};
