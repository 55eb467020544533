/** The processor of this host, as guests' files call it; undefined: one for which there is no guest. */
export const hostArch = (): 'x86_64' | 'aarch64' | undefined => {
  if (process.arch === 'x64') return 'x86_64';
  return process.arch === 'arm64' ? 'aarch64' : undefined;
};
