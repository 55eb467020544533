/**
 * Pipelines: how the bytes of an asset come from their maker to the disk, as rows and not as code. One source stage, then what is done
 * with the stream, in that order. Every pipeline proves what it lands, or its provider says in so many words that it cannot.
 */
import { z } from 'zod';
import { Sha256 } from './common.ts';

/** Text with `{name}` for what is known of the asset: `{version} {arch} {distro} …` and the `config` of the provider. */
const Template = z.string().min(1).max(2048);

/** Where an expected SHA-256 stands: the hash itself, or a list of `hash name` lines (GNU, BSD, or a lone hash where nobody signs it) at a URL. */
const Expected = z.union([
  z.strictObject({ hash: Template.describe('64 hexadecimal digits, or a template for them') }),
  z.strictObject({
    url: Template.describe('the list; if a pgp stage of the pipeline names it, only its signed text counts'),
    name: Template.describe('the name in the list'),
  }),
]);

export const Stage = z.discriminatedUnion('stage', [
  z.strictObject({ stage: z.literal('http'), url: Template.describe('https') }),
  z.strictObject({ stage: z.literal('file'), path: Template.describe('absolute path on the host of the daemon') }),
  z
    .strictObject({
      stage: z.literal('apt'),
      package: Template.optional().describe('a package of the machine’s own signed sources: its .deb is the stream'),
      suite: Template.optional().describe('a suite of the same: a minimal system of it, as tar, is the stream'),
    })
    .refine(s => (s.package === undefined) !== (s.suite === undefined), 'either package or suite'),
  z
    .strictObject({ stage: z.literal('sha256'), expect: Expected })
    .describe('the hash of all bytes that have come out of the stage before'),
  z
    .strictObject({
      stage: z.literal('pgp'),
      document: Template.optional().describe(
        'URL of a signed text (a list of hashes); default: the stream itself is signed',
      ),
      signature: Template.optional().describe('URL of the detached signature; default: the document is clear-signed'),
    })
    .refine(s => s.document !== undefined || s.signature !== undefined, 'a document, a signature, or both'),
  z.strictObject({ stage: z.literal('xz') }),
  z.strictObject({ stage: z.literal('gzip') }),
  z.strictObject({ stage: z.literal('zstd') }),
  z.strictObject({ stage: z.literal('none') }).describe('the bytes as they are'),
  z
    .strictObject({
      stage: z.literal('member'),
      archive: z.enum(['tar', 'deb']),
      name: Template.describe('exactly this regular file is the stream from here on'),
      beside: z
        .record(z.string().regex(/^[a-z][a-z0-9_-]{0,31}$/), Template)
        .default({})
        .describe('file name on disk -> exactly this member, landed beside the stream'),
    })
    .describe('one named file of an archive'),
  z.strictObject({ stage: z.literal('bzimage') }).describe('a compressed x86 kernel to the ELF inside it'),
]);
export type Stage = z.infer<typeof Stage>;

const SOURCES = ['http', 'file', 'apt'];
export const Pipeline = z
  .array(Stage)
  .min(1)
  .max(16)
  .superRefine((stages, ctx) => {
    const wrong = (message: string, at: number) => ctx.addIssue({ code: 'custom', message, path: [at] });
    stages.forEach(({ stage }, at) => {
      if (SOURCES.includes(stage) !== (at === 0)) wrong('the first stage, and no other, is http, file or apt', at);
      if (stage === 'bzimage' && at !== stages.length - 1) wrong('bzimage is the last stage', at);
    });
    if (stages.filter(s => s.stage === 'member').length > 1) wrong('at most one member stage', 0);
  });
export type Pipeline = z.infer<typeof Pipeline>;

const takesFrom = (all: readonly Stage[], document: string): boolean =>
  all.some(s => s.stage === 'sha256' && 'url' in s.expect && s.expect.url === document);

/** A signed text from which no hash is taken: its signature looks like a proof and is none. */
export const unusedDocument = (pipeline: readonly Stage[]): string | undefined =>
  pipeline
    .flatMap(s => (s.stage === 'pgp' && s.document !== undefined ? s.document : []))
    .find(document => !takesFrom(pipeline, document));

/** True if the stage proves what the stream was. A signed text does so only by a checksum that is taken from it; apt checks signatures itself. */
const isProof = (stage: Stage, all: readonly Stage[]): boolean => {
  if (stage.stage !== 'pgp' || stage.document === undefined) return ['apt', 'sha256', 'pgp'].includes(stage.stage);
  return takesFrom(all, stage.document);
};

/** The stages that prove something, in their order. */
const proofsOf = (pipeline: readonly Stage[]): Stage[] => pipeline.filter(stage => isProof(stage, pipeline));

/** What a record says of it, each once, in their order; `none` if nothing is proven. */
export const proofNames = (pipeline: readonly Stage[]): Proof[] => {
  const proofs = [...new Set(proofsOf(pipeline).map(({ stage }) => Proof.parse(stage)))];
  return proofs.length === 0 ? ['none'] : proofs;
};

/** True if all that this pipeline lands is proven: what lands beside the stream has to be proven before they part. */
export const proves = (pipeline: readonly Stage[]): boolean => {
  const parting = pipeline.findIndex(s => s.stage === 'member' && Object.keys(s.beside).length > 0);
  const proofs = proofsOf(pipeline).filter(s => s.stage !== 'pgp' || s.document === undefined);
  return proofs.some(s => parting === -1 || pipeline.indexOf(s) < parting);
};

/** A key that a provider's signatures must be made with. */
export const ProviderKey = z.strictObject({
  fingerprint: z
    .string()
    .regex(/^[0-9A-F]{40}([0-9A-F]{24})?$/)
    .describe('of the primary key, as gpg prints it without spaces'),
  armored: z.string().min(1).max(65_536).describe('the public key, ASCII armored'),
  allow_expired: z
    .boolean()
    .default(false)
    .describe('signatures made while the key was valid count after its expiry too'),
});
export type ProviderKey = z.infer<typeof ProviderKey>;

/** How an asset was proven, in the order of the pipeline. */
export const Proof = z.enum(['apt', 'sha256', 'pgp', 'none']);
export type Proof = z.infer<typeof Proof>;

/** A file that a pipeline landed. */
export const LandedFile = z.strictObject({ sha256: Sha256, size_bytes: z.int().min(0) });
export type LandedFile = z.infer<typeof LandedFile>;
