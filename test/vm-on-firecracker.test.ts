/** The life of a VM and of its daemon once more, on the other stand-in. */
import process from 'node:process';

process.env.NEXUS_TEST_STANDIN = 'firecracker';
await import('./vm.test.ts');
await import('./vm-daemon.test.ts');
