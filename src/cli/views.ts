/** Operations whose answer is not shown as any other. */
import process from 'node:process';
import { FAULTS } from '../api/fault.ts';
import type { GcReport } from '../api/gc.ts';
import { Unreachable } from '../client/transport.ts';
import { checksText } from '../lib/checks.ts';
import { formatBytes } from '../lib/size.ts';
import { agreed, type Cli, fail, note, onTerminal, out } from './cli.ts';
import { exportTree, readFile, writeFile } from './fs.ts';
import { inspectText } from './inspect.ts';
import { jobStarted } from './job.ts';
import { json, table } from './show.ts';

type View = (cli: Cli, input: Record<string, unknown>, options: Record<string, unknown>) => Promise<void>;

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

/** What would go is shown before it is asked for. */
const gc: View = async (cli, input, options) => {
  const show = ({ items, failed, freed_bytes, dry_run, free_bytes, reserve_bytes }: GcReport): void => {
    if (items.length > 0) out(table(['kind', 'name', 'own_bytes', 'why'], items));
    const what = `${items.length} ${items.length === 1 ? 'thing' : 'things'}, ${formatBytes(freed_bytes)}`;
    const deed = dry_run ? `Not needed any more: ${what}` : `Removed ${what}`;
    const free = `${formatBytes(free_bytes)} free, ${formatBytes(reserve_bytes)} of it kept in reserve`;
    note(`${items.length === 0 ? 'Nothing to remove' : deed}. The data directory has ${free}.\n`);
    for (const { kind, name, why } of failed) note(`Cannot remove ${kind} '${name}': ${why.replace(/\.$/, '')}.\n`);
  };
  const dry_run = input.dry_run === true;
  if (!dry_run && options.yes !== true && onTerminal()) {
    const plan = await cli.nexus.daemon.gc({ dry_run: true });
    show(plan);
    if (plan.items.length === 0) return;
    await agreed('Remove all of that?');
  }
  const report = await cli.nexus.daemon.gc({ dry_run });
  if (cli.json) out(json(report));
  else show(report);
  if (report.failed.length > 0) [, cli.code] = FAULTS.internal;
};

export const VIEWS: Record<string, View> = {
  'fs.read': readFile,
  'fs.export': exportTree,
  'fs.write': writeFile,
  'daemon.doctor': doctor,
  'daemon.gc': gc,
  'build.trigger': async (cli, { template }) => {
    const build = await cli.nexus.build.trigger({ template: String(template) });
    out(cli.json ? json(build) : `${build.id}\n`);
    if (!cli.json) note(`It makes image '${build.image_name}'; nexusctl build logs -f ${build.id} follows it.\n`);
  },
  'image.ensure': async (cli, { image }) => {
    const { image_id, job } = await cli.nexus.image.ensure({ image: String(image) });
    if (job !== null) return jobStarted(cli, job, false);
    out(cli.json ? json({ image_id }) : `${image_id}\n`);
  },
  'vm.inspect': async (cli, { vm }) => {
    const seen = await cli.nexus.vm.inspect({ vm: String(vm) });
    out(cli.json ? json(seen) : inspectText(seen));
  },
};
