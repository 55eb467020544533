/** What is laid over the archive of a build: the overlays of its template, and below them those of the image that it is built on. */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import type { Build } from '../api/build.ts';
import { Fault } from '../api/fault.ts';
import type { Image } from '../api/image.ts';
import { type Overlay, Overlays, type Template } from '../api/template.ts';
import type { Overlay as Laid } from '../images/merge.ts';
import { plain } from '../lib/text.ts';
import { needImage } from './find.ts';
import type { Host } from './host.ts';

/** A file of the host is held in memory while the image is built. */
const MAX_HOST_FILE = 64 * 1024 * 1024;

/** A named pipe would be waited for. */
const READ = constants.O_RDONLY | constants.O_NONBLOCK;

export type Layers = Pick<Build, 'overlays' | 'environment' | 'init' | 'size_bytes' | 'base_image_id' | 'rootfs_id'>;

type Blueprint = Pick<Template, 'source_type' | 'source' | 'overlays' | 'environment' | 'init' | 'size_bytes'>;

/** The layers of a template as it is now: those of the image that it builds on first. The archive is found when the build runs. */
export const layersOf = async (host: Host, template: Blueprint): Promise<Layers> => {
  const { overlays, environment, init, size_bytes } = template;
  if (template.source_type === 'rootfs')
    return { overlays, environment, init, size_bytes, base_image_id: null, rootfs_id: null };
  const image = await needImage(host, template.source);
  const below = await layersBelow(host, image);
  return {
    overlays: together(image, [...below.overlays, ...overlays]),
    environment: { ...below.environment, ...environment },
    init: init === 'auto' ? below.init : init,
    size_bytes: size_bytes ?? below.size_bytes,
    base_image_id: image.id,
    rootfs_id: below.rootfs_id,
  };
};

/** Of an image that nothing can be built on: debugfs would read its files, but an ordinary user would lose their owners. */
export const refuseImport = ({ name, build_id, rootfs_id }: Image): void => {
  if (build_id !== null || rootfs_id !== null) return;
  const why = 'it was imported, and a build begins with an archive';
  throw new Fault('unsupported', `Cannot build on image '${name}': ${why}.`, {
    hint: 'pack its files (tar --xattrs --numeric-owner), and name that archive: --source-type rootfs --source /path/of.tar',
  });
};

const layersBelow = async (host: Host, image: Image): Promise<Layers> => {
  const build = image.build_id === null ? undefined : await host.store.findBuild(image.build_id);
  // an image of a Nexus that kept no builds had no overlays
  const plainOnes = { overlays: [], environment: {}, init: image.init, size_bytes: null, base_image_id: null };
  const layers: Layers = build ?? { ...plainOnes, rootfs_id: image.rootfs_id };
  refuseImport(image);
  if (layers.rootfs_id !== null && (await host.store.assets.rootfs.find(layers.rootfs_id)) !== undefined) return layers;
  throw new Fault(
    'not_found',
    `Cannot build on image '${image.name}': the archive that it was built from was removed.`,
    {
      hint: 'nexusctl rootfs download, and build it again',
    },
  );
};

const together = (image: Image, overlays: Overlay[]): Overlay[] => {
  const parsed = Overlays.safeParse(overlays);
  if (parsed.success) return parsed.data;
  const why = parsed.error.issues[0]?.message ?? 'there are too many overlays';
  throw new Fault('invalid', `Cannot build on image '${image.name}': with its own overlays ${why}.`);
};

const cannotRead = ({ path, host_file }: Overlay, why: string, cause?: unknown): Fault =>
  new Fault('invalid', `Cannot overlay '${plain(path)}': ${plain(host_file ?? '')} ${why}.`, { cause });

const readHostFile = async (overlay: Overlay, path: string): Promise<Buffer> => {
  try {
    await using handle = await open(path, READ);
    const stat = await handle.stat();
    if (!stat.isFile()) throw cannotRead(overlay, 'is no file');
    if (stat.size > MAX_HOST_FILE) throw cannotRead(overlay, 'is larger than 64 MiB');
    const data = Buffer.alloc(stat.size);
    const { bytesRead } = await handle.read(data, 0, data.length, 0);
    return data.subarray(0, bytesRead);
  } catch (cause) {
    if (cause instanceof Fault) throw cause;
    const code = cause instanceof Error && 'code' in cause ? cause.code : cause;
    throw cannotRead(overlay, code === 'ENOENT' ? 'is not there' : `cannot be read: ${code}`, cause);
  }
};

const dataOf = async (overlay: Overlay): Promise<Buffer | undefined> => {
  const { content, bytes_base64, host_file } = overlay;
  if (content !== undefined) return Buffer.from(content);
  if (bytes_base64 !== undefined) return Buffer.from(bytes_base64, 'base64');
  return host_file === undefined ? undefined : readHostFile(overlay, host_file);
};

/** One overlay as the image builder takes it, and as the record keeps it: with the hash of what a file of the host held. */
const readOverlay = async (overlay: Overlay): Promise<{ laid: Laid; kept: Overlay }> => {
  const { path, symlink, mode, uid, gid, sha256 } = overlay;
  const data = await dataOf(overlay);
  const type = overlay.delete ? 'delete' : symlink === undefined ? 'file' : 'symlink';
  const owner = { ...(uid !== undefined && { uid }), ...(gid !== undefined && { gid }) };
  const laid: Laid = {
    ...{ path, type, ...owner },
    ...(mode !== undefined && { mode: Number.parseInt(mode, 8) }),
    ...(data !== undefined && { data }),
    ...(symlink !== undefined && { target: symlink }),
  };
  if (overlay.host_file === undefined || data === undefined) return { laid, kept: overlay };
  const found = createHash('sha256').update(data).digest('hex');
  if (sha256 !== undefined && sha256 !== found)
    throw new Fault(
      'unverified',
      `Cannot overlay '${plain(path)}': ${plain(overlay.host_file)} holds something else than it did, or should.`,
    );
  return { laid, kept: { ...overlay, sha256: found } };
};

type Reads = Pick<Build, 'overlays' | 'base_image_id'>;

/** An image below remembers what a file of the host held, not its bytes: where that changed, the image has to be built again first. */
const belowChanged = async (host: Host, { base_image_id }: Reads, at: number, error: unknown): Promise<unknown> => {
  if (!(error instanceof Fault) || error.code !== 'unverified' || base_image_id === null) return error;
  const base = await host.store.findImage(base_image_id);
  const build = base?.build_id == null ? undefined : await host.store.findBuild(base.build_id);
  if (base === undefined || build?.template == null || at >= build.overlays.length) return error;
  const why = error.message.replace(/\.$/, '');
  return new Fault('unverified', `${why}: image '${base.name}' below was built with what it held then.`, {
    hint: `nexusctl build trigger ${build.template}`,
    cause: error,
  });
};

/** Reads what the overlays hold. */
export const readOverlays = async (
  host: Host,
  build: Reads,
  signal: AbortSignal,
): Promise<{ laid: Laid[]; kept: Overlay[] }> => {
  const all: Awaited<ReturnType<typeof readOverlay>>[] = [];
  for (const overlay of build.overlays) {
    signal.throwIfAborted();
    const one = readOverlay(overlay).catch(async error => {
      throw await belowChanged(host, build, all.length, error);
    });
    all.push(await one);
  }
  return { laid: all.map(one => one.laid), kept: all.map(one => one.kept) };
};
