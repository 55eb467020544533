/** The operation table: the sum of all nouns. */
import { buildOps } from './build.ts';
import { daemonOps } from './daemon.ts';
import { eventOps } from './event.ts';
import { execOps } from './exec.ts';
import { firecrackerOps } from './firecracker.ts';
import { fsOps } from './fs.ts';
import { gcOps } from './gc.ts';
import { imageOps } from './image.ts';
import { jobOps } from './job.ts';
import { kernelOps } from './kernel.ts';
import type { Args, In, Op, Out, Say, Stream } from './op.ts';
import { portOps } from './port.ts';
import { providerOps } from './provider.ts';
import { rootfsOps } from './rootfs.ts';
import { templateOps } from './template.ts';
import { terminalOps } from './terminal.ts';
import { vmAgentOps } from './vm_agent.ts';
import { vmInspectOps } from './vm_inspect.ts';
import { vmOps } from './vm_ops.ts';
import { vmUpOps } from './vm_up.ts';
import { vmWatchOps } from './vm_watch.ts';
import { wsOps } from './ws.ts';

export const ops = {
  ...daemonOps,
  ...gcOps,
  ...providerOps,
  ...kernelOps,
  ...rootfsOps,
  ...firecrackerOps,
  ...templateOps,
  ...buildOps,
  ...imageOps,
  ...wsOps,
  ...vmOps,
  ...vmAgentOps,
  ...vmInspectOps,
  ...vmUpOps,
  ...vmWatchOps,
  ...execOps,
  ...fsOps,
  ...terminalOps,
  ...portOps,
  ...jobOps,
  ...eventOps,
};

export type Ops = typeof ops;
export type OpName = keyof Ops;
export const OP_NAMES = Object.keys(ops) as OpName[];
export type OpIn<N extends OpName> = In<Ops[N]>;
export type OpArgs<N extends OpName> = Args<Ops[N]>;
export type OpOut<N extends OpName> = Out<Ops[N]>;
export type OpSay<N extends OpName> = Say<Ops[N]>;
export type OpStream<N extends OpName> = Stream<Ops[N]>;
export type AnyOp = Op;
