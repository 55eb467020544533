/** Connections to ports of guests. */
import { Fault } from '../api/fault.ts';
import type { PortMessage } from '../api/port.ts';
import type { Port } from '../guest/port.ts';
import type { HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { awaitGuest, needLive } from './inside.ts';

export const portHandlers = (host: Host): HandlersOf<'port'> => ({
  'port.open': async (ctx, { vm, port, host: to }) => {
    const live = await needLive(host, vm);
    await awaitGuest(live, vm, ctx.signal);
    const signal = AbortSignal.any([ctx.signal, live.gone.signal]);
    const opened = await live.guest.openPort({ port, host: to }, signal).catch((error: unknown) => {
      if (!(error instanceof Fault) || error.reason === undefined) throw error;
      throw new Fault(error.code, error.message.replace(/of the guest:/, `of VM '${vm}':`), { reason: error.reason });
    });
    return {
      output: said(opened),
      take: async piece => {
        if (Buffer.isBuffer(piece)) await opened.write(piece);
        else await opened.end();
      },
    };
  },
});

const said = async function* (port: Port): AsyncGenerator<Uint8Array | PortMessage> {
  for await (const piece of port) yield piece === 'end' ? { type: 'end' } : piece;
};
