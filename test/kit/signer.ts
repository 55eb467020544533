/** Keys of OpenPGP, made for a test, and what they sign. */
import * as pgp from 'openpgp';
import type { ProviderKey } from '../../src/api/pipeline.ts';

export interface Signer {
  key: pgp.PrivateKey;
  fingerprint: string;
  armored: string;
  /** As the row of a provider pins it. */
  pinned: ProviderKey;
  /** An armored detached signature. */
  detached(data: string | Uint8Array, date?: Date): Promise<string>;
  /** A clear-signed text. */
  clear(text: string): Promise<string>;
}

const signerOf = (key: pgp.PrivateKey): Signer => {
  const armored = key.toPublic().armor();
  const fingerprint = key.getFingerprint().toUpperCase();
  return {
    key,
    fingerprint,
    armored,
    pinned: { fingerprint, armored, allow_expired: false },
    detached: async (data, date = new Date()) => {
      const message = await pgp.createMessage({ binary: Buffer.from(data) });
      return pgp.sign({ message, signingKeys: key, detached: true, date });
    },
    clear: async text => pgp.sign({ message: await pgp.createCleartextMessage({ text }), signingKeys: key }),
  };
};

/** `made`: when; `lives_s`: seconds until it expires, 0 for never. */
export const makeSigner = async (
  options: { made?: Date; lives_s?: number; subkey?: boolean } = {},
): Promise<Signer> => {
  const { made = new Date(Date.now() - 60_000), lives_s = 0, subkey = false } = options;
  const { privateKey } = await pgp.generateKey({
    type: 'ecc',
    curve: 'ed25519Legacy',
    userIDs: [{ name: 'Test', email: 'test@example.org' }],
    date: made,
    keyExpirationTime: lives_s,
    subkeys: subkey ? [{ sign: true }] : [],
    format: 'object',
  });
  return signerOf(privateKey);
};

/** The same key, revoked by its owner. */
export const revoked = async (signer: Signer): Promise<ProviderKey> => {
  const { publicKey } = await pgp.revokeKey({ key: signer.key, format: 'object' });
  return { ...signer.pinned, armored: publicKey.armor() };
};

/** The same key as it is after its owner has let it expire so many seconds after it was made. */
export const expiring = async (signer: Signer, lives_s: number): Promise<ProviderKey> => {
  const { publicKey } = await pgp.reformatKey({
    privateKey: signer.key,
    userIDs: [{ name: 'Test', email: 'test@example.org' }],
    date: new Date(signer.key.getCreationTime().getTime() + 1000),
    keyExpirationTime: lives_s,
    format: 'object',
  });
  return { ...signer.pinned, armored: publicKey.armor() };
};
