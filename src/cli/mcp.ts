/**
 * `nexusctl mcp`: the operations that the contract marks as tools, for an agent that speaks the Model Context Protocol over this
 * process's standard input and output. A tool is named after its operation: `vm_start` is `vm.start`. Its answer is the
 * operation's, as JSON; a failure is its problem document. Standard output carries the protocol and nothing else.
 */
import { McpServer } from '@modelcontextprotocol/server';
import { StdioServerTransport } from '@modelcontextprotocol/server/stdio';
import { Fault } from '../api/fault.ts';
import { type AnyOp, OP_NAMES, type OpName, ops } from '../api/ops.ts';
import { Unreachable } from '../client/transport.ts';
import { VERSION } from '../lib/version.ts';
import { type Cli, fail, unreachableProblem } from './cli.ts';

const INSTRUCTIONS =
  'Nexus runs microVMs on this machine. What takes long answers with a job: job_wait waits for it. vm_up makes a VM from nothing.';

/** Some clients take no dots in names. */
const toolName = (name: OpName): string => name.replace('.', '_');

const text = (value: unknown) => [{ type: 'text' as const, text: JSON.stringify(value) }];

const problemOf = (error: unknown): unknown => {
  if (error instanceof Fault) return error.problem();
  if (error instanceof Unreachable) return unreachableProblem(error);
  throw error;
};

const addTool = (cli: Cli, server: McpServer, name: OpName, op: AnyOp): void => {
  const description = op.summary;
  const annotations = { readOnlyHint: op.method === 'GET' }; // whether what writes destroys the contract does not say
  server.registerTool(toolName(name), { description, inputSchema: op.input, annotations }, async (input, ctx) => {
    try {
      return { content: text(await cli.nexus.call(name, input, { signal: ctx.mcpReq.signal })) };
    } catch (error) {
      return { content: text(problemOf(error)), isError: true };
    }
  });
};

/** Serves until standard input ends. */
export const mcpCommand = async (cli: Cli): Promise<void> => {
  const server = new McpServer({ name: 'nexus', version: VERSION }, { instructions: INSTRUCTIONS });
  for (const name of OP_NAMES) if (ops[name].tool === true) addTool(cli, server, name, ops[name]);
  const ended = Promise.withResolvers<void>();
  server.server.onclose = () => ended.resolve();
  server.server.onerror = error => void fail(cli, error);
  await server.connect(new StdioServerTransport());
  await ended.promise;
};
