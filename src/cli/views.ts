/** Operations whose answer is not shown as any other. */
import process from 'node:process';
import { FAULTS } from '../api/fault.ts';
import { Unreachable } from '../client/transport.ts';
import { checksText } from '../lib/checks.ts';
import { type Cli, fail, note, out } from './cli.ts';
import { readFile, writeFile } from './fs.ts';
import { inspectText } from './inspect.ts';
import { json } from './show.ts';

type View = (cli: Cli, input: Record<string, unknown>) => Promise<void>;

/** Without a daemon the same is looked at by nexusd itself. */
const doctor: View = async cli => {
  try {
    const report = await cli.nexus.daemon.doctor();
    out(cli.json ? json(report) : checksText(report.checks, process.stdout));
    if (!report.able) [, cli.code] = FAULTS.host;
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    cli.code = fail(cli, error);
    if (!cli.json) note('hint: nexusd --doctor looks at this host without a daemon\n');
  }
};

export const VIEWS: Record<string, View> = {
  'fs.read': readFile,
  'fs.write': writeFile,
  'daemon.doctor': doctor,
  'build.trigger': async (cli, { template }) => {
    const build = await cli.nexus.build.trigger({ template: String(template) });
    out(cli.json ? json(build) : `${build.id}\n`);
    if (!cli.json) note(`It makes image '${build.image_name}'; nexusctl build logs -f ${build.id} follows it.\n`);
  },
  'vm.inspect': async (cli, { vm }) => {
    const seen = await cli.nexus.vm.inspect({ vm: String(vm) });
    out(cli.json ? json(seen) : inspectText(seen));
  },
};
