/** What the contract cannot say: how nouns and verbs are spoken, short flags, further names of commands. */

/** noun -> [one, several] */
export const NOUNS: Record<string, readonly [string, string]> = {
  daemon: ['daemon', 'daemons'],
  kernel: ['kernel', 'kernels'],
  rootfs: ['root file system', 'root file systems'],
  firecracker: ['Firecracker', 'Firecrackers'],
  provider: ['provider', 'providers'],
  template: ['template', 'templates'],
  build: ['build', 'builds'],
  image: ['image', 'images'],
  ws: ['workspace', 'workspaces'],
  vm: ['VM', 'VMs'],
  exec: ['command', 'commands'],
  fs: ['file', 'files'],
  terminal: ['terminal', 'terminals'],
  port: ['port', 'ports'],
  job: ['job', 'jobs'],
  event: ['event', 'events'],
};

/** What several things of an operation are called, where it is not the noun itself. */
export const LISTS: Record<string, string> = { 'vm.history': 'transitions', 'vm.up_plan': 'steps' };

export const NOUN_ALIASES: Record<string, string> = {
  workspace: 'ws',
  workspaces: 'ws',
  vms: 'vm',
  templates: 'template',
  builds: 'build',
  images: 'image',
  kernels: 'kernel',
  firecrackers: 'firecracker',
  providers: 'provider',
  jobs: 'job',
};

export const VERB_ALIASES: Record<string, string> = {
  list: 'ls',
  get: 'show',
  delete: 'rm',
  remove: 'rm',
  read: 'cat',
  rename: 'mv',
};

/** The verb of an operation that answers nothing, once it is done. */
export const PAST: Record<string, string> = {
  delete: 'Deleted',
  remove: 'Removed',
  signal: 'Signalled',
  ping: 'Alive',
  mkdir: 'Made',
  rename: 'Renamed',
  chmod: 'Changed',
};

/** These ask first on a terminal. */
export const DESTRUCTIVE: readonly string[] = ['delete', 'remove', 'gc'];

/** Fields that name a file on the host of the daemon, or a URL: a name is made absolute. */
export const PATHS: readonly string[] = ['from', 'to'];

/** These may be names: what is to be a file begins with a dot or a slash. */
export const MAYBE_PATHS: readonly string[] = ['source'];

/** Longer texts: @FILE is what a file here holds. */
export const SCRIPTS: readonly string[] = ['first_boot'];

/** field -> its one-letter flag */
export const SHORT: Record<string, string> = {
  env: 'e',
  environment: 'e',
  user: 'u',
  cwd: 'w',
  follow: 'f',
  tail: 'n',
  recursive: 'r',
  parents: 'p',
};
