/** What a pipeline is run with, and what it gives. */
import type { JobProgress } from '../api/job.ts';
import type { LandedFile, Pipeline, Proof, ProviderKey } from '../api/pipeline.ts';
import type { Apt } from './apt.ts';
import type { DebEntry } from './deb.ts';
import type { Times } from './http.ts';

export interface PipelineInput {
  pipeline: Pipeline;
  /** Fills `{name}` in the stages. */
  vars: Readonly<Record<string, string>>;
  keys: readonly ProviderKey[];
  /** The provider says in so many words that this source cannot be proven. */
  unverified: boolean;
  /** Private and empty; only the landed files are left in it. */
  dir: string;
  /** Name of the main file in `dir`. */
  file: string;
  /** Ceilings: bytes over the wire, bytes after decompression. */
  limits: { download_bytes: number; output_bytes: number };
  times?: Partial<Times>;
  /** Takes what the caller wants of the other regular files of an archive, as they pass by. Nothing of it is proven before the end. */
  collect?: (file: DebEntry) => Promise<void>;
  /** For `apt` with a package: an apt whose lists know it; default: one of our own. */
  apt?: Apt;
  /** For `apt` with a suite: packages to add to the minimal system. */
  packages?: readonly string[];
  /** Whose work it is: a path of the caller's own, by which a later one finds what a killed one left. */
  owner: string;
  /** The bearer token for a URL, if there is one; never sent to another host. */
  token?: (url: URL) => string | undefined;
  /** Told how long the file is before it comes, where the server says so; may refuse. */
  onLength?: (bytes: number) => Promise<void>;
  signal: AbortSignal;
  onProgress: (progress: JobProgress) => void;
  onLog: (line: string) => void;
}

export interface Landed {
  /** As it lies on disk: what `verify` compares. */
  file: LandedFile;
  beside: Record<string, LandedFile>;
  /** URL, path, or package and version that it came from; no credentials in it. */
  source: string;
  /** How it was proven, in the order of the pipeline; `none` if it was not. */
  proofs: Proof[];
}
