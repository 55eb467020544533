/** Operations whose answer is not shown as any other. */
import { type Cli, out } from './cli.ts';
import { inspectText } from './inspect.ts';
import { json } from './show.ts';

type View = (cli: Cli, input: Record<string, unknown>) => Promise<void>;

export const VIEWS: Record<string, View> = {
  'vm.inspect': async (cli, { vm }) => {
    const seen = await cli.nexus.vm.inspect({ vm: String(vm) });
    out(cli.json ? json(seen) : inspectText(seen));
  },
};
