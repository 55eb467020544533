/** All handlers: the sum of the nouns. */
import { buildHandlers } from './build.ts';
import { daemonHandlers } from './daemon.ts';
import { eventHandlers } from './event.ts';
import { execHandlers } from './exec.ts';
import { firecrackerHandlers } from './firecracker.ts';
import { fsHandlers } from './fs.ts';
import type { Handlers } from './handler.ts';
import type { Host } from './host.ts';
import { imageHandlers } from './image.ts';
import { jobHandlers } from './job.ts';
import { kernelHandlers } from './kernel.ts';
import { portHandlers } from './port.ts';
import { providerHandlers } from './provider.ts';
import { rootfsHandlers } from './rootfs.ts';
import { templateHandlers } from './template.ts';
import { terminalHandlers } from './terminal.ts';
import { vmHandlers } from './vm.ts';
import { wsHandlers } from './ws.ts';

export const makeHandlers = (host: Host): Handlers => ({
  ...daemonHandlers(host),
  ...providerHandlers(host),
  ...kernelHandlers(host),
  ...rootfsHandlers(host),
  ...firecrackerHandlers(host),
  ...templateHandlers(host),
  ...buildHandlers(host),
  ...imageHandlers(host),
  ...wsHandlers(host),
  ...vmHandlers(host),
  ...execHandlers(host),
  ...fsHandlers(host),
  ...terminalHandlers(host),
  ...portHandlers(host),
  ...jobHandlers(host),
  ...eventHandlers(host),
});
