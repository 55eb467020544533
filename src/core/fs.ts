import type { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { FsListMessage } from '../api/fs.ts';
import type { Files } from '../guest/files.ts';
import type { Ctx, HandlersOf } from './handler.ts';
import type { Host } from './host.ts';
import { needGuest } from './inside.ts';

/** Finds the files of a VM's guest, and what ends work on them. */
type Find = (ctx: Ctx, vm: string) => Promise<[files: Files, gone: AbortSignal]>;

const needBody = (ctx: Ctx): Readable => {
  if (ctx.body === undefined) throw new Fault('invalid', 'Cannot write the file: the request has no body.');
  return ctx.body;
};

export const fsHandlers = (host: Host): HandlersOf<'fs'> =>
  handlersOver(async (ctx, vm) => {
    const { guest, gone } = await needGuest(host, vm, ctx.signal);
    return [guest.files, gone];
  });

export const handlersOver = (find: Find): HandlersOf<'fs'> => ({
  'fs.stat': async (ctx, { vm, path, follow }) => {
    const [files, gone] = await find(ctx, vm);
    return await files.stat(path, follow, gone);
  },
  'fs.list': async (ctx, { vm, path }) => {
    const [files, gone] = await find(ctx, vm);
    return entries(files, path, gone);
  },
  'fs.read': async (ctx, { vm, path, ...range }) => {
    const [files, gone] = await find(ctx, vm);
    return await files.read(path, range, gone);
  },
  'fs.write': async (ctx, { vm, path, ...options }) => {
    const body = needBody(ctx);
    if (options.append && options.offset_bytes !== undefined)
      throw new Fault('invalid', 'Cannot write the file: append and offset_bytes exclude each other.');
    const [files, gone] = await find(ctx, vm);
    return await files.write(path, options, body, gone);
  },
  'fs.watch': async (ctx, { vm, path, recursive }) => {
    const [files, gone] = await find(ctx, vm);
    return files.watch(path, recursive, gone);
  },
  'fs.export': async (ctx, { vm, path, devices }) => {
    const [files, gone] = await find(ctx, vm);
    return await files.exportTree(path, devices, gone);
  },
  'fs.import': async (ctx, { vm, path }) => {
    const body = needBody(ctx);
    const [files, gone] = await find(ctx, vm);
    return await files.importTree(path, body, gone);
  },
  'fs.remove': async (ctx, { vm, path, recursive }) => {
    const [files, gone] = await find(ctx, vm);
    await files.remove(path, recursive, gone);
    return {};
  },
  'fs.mkdir': async (ctx, { vm, path, ...options }) => {
    const [files, gone] = await find(ctx, vm);
    await files.mkdir(path, options, gone);
    return {};
  },
  'fs.rename': async (ctx, { vm, path, new_path, replace }) => {
    const [files, gone] = await find(ctx, vm);
    await files.rename(path, new_path, replace, gone);
    return {};
  },
  'fs.chmod': async (ctx, { vm, path, ...options }) => {
    if (Object.values(options).every(value => value === undefined))
      throw new Fault('invalid', 'Cannot change the file: give mode, uid, gid or modified_at_ms.');
    const [files, gone] = await find(ctx, vm);
    await files.chmod(path, options, gone);
    return {};
  },
});

const entries = async function* (files: Files, path: string, gone: AbortSignal): AsyncGenerator<FsListMessage> {
  for await (const entry of files.list(path, gone)) yield { type: 'entry', entry };
};
