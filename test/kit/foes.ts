/** VMMs and guests that mean ill, for the stand-ins (their headers say what the words mean), and to what state of their VM each must come. */
import type { VmmKind } from '../../src/api/vm.ts';
import type { VmState } from '../../src/api/vm_state.ts';

export interface Foe {
  readonly manner: Record<string, string | number>;
  /** `starting`: it hangs, and the start waits for its deadline. */
  readonly state: VmState;
}

const each = (state: VmState, manners: readonly Foe['manner'][]): Foe[] => manners.map(manner => ({ manner, state }));

/** More than any test waits for. */
const FLOOD_MIB = 1_000_000;

const QEMU_UP: readonly Foe[] = [
  ...each('failed', [
    { DIE: 3 },
    ...['qmp_capabilities', 'query-chardev', 'chardev-add', 'device_add', 'cont'].map(DIE_AT => ({ DIE_AT })),
    ...['chardev-add', 'device_add', 'cont'].map(REFUSE => ({ REFUSE })),
    ...['huge', 'nojson', 'events', 'close'].map(LIE_WITH => ({ LIE: 'cont', LIE_WITH })),
  ]),
  // each is a connection that is ended and tried again, or a command that waits for its deadline
  ...each('starting', [
    { HANG: 1 },
    { NO_SOCKET: 1 },
    ...['qmp_capabilities', 'query-chardev'].map(REFUSE => ({ REFUSE })),
    ...['qmp_capabilities', 'query-chardev', 'chardev-add', 'device_add', 'cont'].map(STALL => ({ STALL })),
    ...['garbage', 'huge', 'nojson', 'stranger', 'events', 'close'].map(LIE_WITH => ({
      LIE: 'query-chardev',
      LIE_WITH,
    })),
    ...['garbage', 'stranger'].map(LIE_WITH => ({ LIE: 'chardev-add', LIE_WITH })),
  ]),
  ...each('crashed', [{ RESET_MS: 0, HARNESS: '' }, { DIE_AT: 'query-blockstats' }]),
];

const QEMU_LIFE: readonly Foe[] = each('running', [
  { FLOOD_MIB },
  { NOISE: 'control' },
  { NOISE: 'egress' },
  { EGRESS_MS: 1, HARNESS: '' },
  { STUBBORN: 1, IGNORE_END: 1 },
  ...['query-chardev', 'query-status', 'device_del'].map(STALL => ({ STALL, LATE: 1 })),
  ...['garbage', 'huge', 'nojson', 'events', 'close'].map(LIE_WITH => ({ LIE: 'query-blockstats', LIE_WITH })),
  ...['huge', 'events'].map(LIE_WITH => ({ LIE: 'qmp_capabilities', LIE_WITH, LATE: 1 })),
]);

const PARTS = ['/machine-config', '/boot-source', '/drives/disk0', '/entropy', '/vsock'];
const PHASES = [...PARTS.map(part => `PUT ${part}`), 'InstanceStart'];

const FIRECRACKER_UP: readonly Foe[] = [
  ...each('failed', [
    { DIE: 3 },
    ...['listen', 'api', ...PHASES].map(DIE_AT => ({ DIE_AT })),
    ...PHASES.map(REFUSE => ({ REFUSE })),
    ...['garbage', 'huge', 'nojson', 'busy', 'close'].flatMap(LIE_WITH =>
      ['PUT /vsock', 'InstanceStart'].map(LIE => ({ LIE, LIE_WITH })),
    ),
  ]),
  ...each('starting', [
    ...['listen', ...PHASES].map(STALL => ({ STALL })),
    ...['PUT /vsock', 'InstanceStart'].map(LIE => ({ LIE, LIE_WITH: 'drip' })),
  ]),
  ...each('crashed', [{ RESET_MS: 0, HARNESS: '' }, { DIE_AT: 'CONNECT' }, { DIE_AFTER: 'InstanceStart' }]),
];

const FIRECRACKER_LIFE: readonly Foe[] = each('running', [
  { FLOOD_MIB },
  { NOISE: 'control' },
  { NOISE: 'egress' },
  { DIAL_LOOP: 1 },
  { EGRESS_MS: 1 },
  { STUBBORN: 1, IGNORE_END: 1 },
  ...['silent', 'garbage', 'huge', 'close'].map(CONNECT => ({ CONNECT })),
  ...['garbage', 'huge', 'flood'].map(METRICS => ({ METRICS })),
  ...['FlushMetrics', 'GET /'].flatMap(at => [{ STALL: at }, { LIE: at, LIE_WITH: 'huge' }]),
  { STALL: 'SendCtrlAltDel', BOOT_MS: 600_000 },
]);

/** `up`: until the guest runs; `life`: from then on. */
export const FOES: Record<VmmKind, { up: readonly Foe[]; life: readonly Foe[] }> = {
  qemu: { up: QEMU_UP, life: QEMU_LIFE },
  firecracker: { up: FIRECRACKER_UP, life: FIRECRACKER_LIFE },
};
