/**
 * OpenPGP signatures, checked with keys that a provider's row pins by fingerprint, and with no others. openpgp is loaded where a
 * signature is checked and not before: it takes 0.1 s and some memory.
 */
import type { CleartextMessage, Key, KeyID, Signature } from 'openpgp';
import { Fault } from '../api/fault.ts';
import type { ProviderKey } from '../api/pipeline.ts';
import { plain } from '../lib/text.ts';

type OpenPgp = typeof import('openpgp');

/** One of the signatures of a message, as openpgp gives it. */
interface Signed {
  keyID: KeyID;
  verified: Promise<true>;
  signature: Promise<Signature>;
}

interface Pinned {
  key: Key;
  allow_expired: boolean;
}

const bad = (what: string, why: string, cause?: unknown): Fault =>
  new Fault('unverified', `Cannot trust ${plain(what)}: ${why}.`, { cause });

const words = (error: unknown): string =>
  plain(error instanceof Error ? error.message : String(error))
    .replace(/\.$/, '')
    .slice(0, 300);

/** Reads the keys of a row; each has to be the one that its fingerprint names. */
const readKeys = async (pgp: OpenPgp, keys: readonly ProviderKey[], what: string): Promise<Pinned[]> => {
  if (keys.length === 0) throw bad(what, 'its provider has no key to check its signature with');
  return Promise.all(
    keys.map(async ({ fingerprint, armored, allow_expired }) => {
      const key = await pgp.readKey({ armoredKey: armored }).catch((error: unknown) => {
        throw bad(what, `the key ${fingerprint} of its provider cannot be read: ${words(error)}`, error);
      });
      if (key.getFingerprint().toUpperCase() !== fingerprint)
        throw bad(what, `the key that its provider has for ${fingerprint} is another one`);
      return { key, allow_expired };
    }),
  );
};

/** Refuses a revoked key always, an expired one unless its row allows it. */
const checkKey = async ({ key, allow_expired }: Pinned, signer: Signature, what: string): Promise<void> => {
  const now = new Date();
  const name = key.getFingerprint().toUpperCase();
  const id = signer.packets[0]?.issuerKeyID;
  if (key.revocationSignatures.length > 0 || (await key.isRevoked(undefined, undefined, now)))
    throw bad(what, `the key ${name} is revoked`);
  for (const sub of key.subkeys)
    if (id !== undefined && sub.getKeyID().equals(id) && sub.revocationSignatures.length > 0)
      throw bad(what, `the signing key of ${name} is revoked`);
  // openpgp itself checks that a signature is not of the future, and that its key was valid then: by a date that must be there
  if (!signer.packets[0]?.created) throw bad(what, 'its signature does not say when it was made');
  if (allow_expired) return;
  await key.getSigningKey(id, now).catch((error: unknown) => {
    throw bad(what, `the key ${name} cannot sign any more: ${words(error)}`, error);
  });
};

/** At least one signature is of a pinned key, and every one of a pinned key is good. */
const checkSignatures = async (results: readonly Signed[], pinned: readonly Pinned[], what: string): Promise<void> => {
  let good = 0;
  for (const result of results) {
    const by = pinned.find(({ key }) => key.getKeys(result.keyID).length > 0);
    if (by === undefined) continue;
    try {
      await result.verified;
    } catch (error) {
      throw bad(what, `its signature is not good: ${words(error)}`, error);
    }
    await checkKey(by, await result.signature, what);
    good++;
  }
  if (good > 0) return;
  const others = results.map(r => r.keyID.toHex().toUpperCase()).join(', ');
  throw bad(what, others === '' ? 'it has no signature' : `it is signed by the unknown key ${others}`);
};

const readSignature = async (pgp: OpenPgp, bytes: Buffer, what: string): Promise<Signature> => {
  try {
    return bytes.toString('latin1', 0, 256).trimStart().startsWith('-----')
      ? await pgp.readSignature({ armoredSignature: bytes.toString('utf8') })
      : await pgp.readSignature({ binarySignature: bytes });
  } catch (error) {
    throw bad(what, `its signature cannot be read: ${words(error)}`, error);
  }
};

/** Checks a detached signature of a document; returns when it is good. */
export const checkDetached = async (
  document: Buffer,
  signature: Buffer,
  keys: readonly ProviderKey[],
  what: string,
): Promise<void> => {
  const pgp = await import('openpgp');
  const pinned = await readKeys(pgp, keys, what);
  const { signatures } = await pgp.verify({
    message: await pgp.createMessage({ binary: document }),
    signature: await readSignature(pgp, signature, what),
    verificationKeys: pinned.map(p => p.key),
    format: 'binary',
    config: CONFIG,
  });
  await checkSignatures(signatures, pinned, what);
};

/** Signatures over SHA-1 and older are refused by openpgp as it comes; so are RSA keys of less than 2047 bits. */
const CONFIG = { allowInsecureVerificationWithReformattedKeys: false };

const BEGIN = '-----BEGIN PGP SIGNED MESSAGE-----';
const SIGNATURE = '-----BEGIN PGP SIGNATURE-----';
const END = '-----END PGP SIGNATURE-----';

const readClear = async (pgp: OpenPgp, text: string, what: string): Promise<CleartextMessage> => {
  const lines = text.split('\n').map(line => line.trimEnd());
  while (lines.at(-1) === '') lines.pop();
  const places = (mark: string) => lines.flatMap((line, at) => (line === mark ? at : []));
  const [begins, signatures, ends] = [BEGIN, SIGNATURE, END].map(places);
  if (begins?.join() !== '0' || ends?.join() !== String(lines.length - 1) || signatures?.length !== 1)
    throw bad(what, 'it is not one signed text with nothing before and behind it');
  return pgp.readCleartextMessage({ cleartextMessage: text }).catch((error: unknown) => {
    throw bad(what, `its signed text cannot be read: ${words(error)}`, error);
  });
};

/** Checks a clear-signed text; gives what is signed, and nothing of what is not. */
export const checkClear = async (text: string, keys: readonly ProviderKey[], what: string): Promise<string> => {
  const pgp = await import('openpgp');
  const pinned = await readKeys(pgp, keys, what);
  const message = await readClear(pgp, text, what);
  const { data, signatures } = await pgp.verify({ message, verificationKeys: pinned.map(p => p.key), config: CONFIG });
  await checkSignatures(signatures, pinned, what);
  return data;
};

/** Passes a stream on and checks a detached signature over all of it; throws at its end unless that is good, and tells if it is. */
export const checkStream = async function* (
  from: AsyncIterable<Buffer>,
  signature: Buffer,
  keys: readonly ProviderKey[],
  what: string,
  passed: () => void,
): AsyncGenerator<Buffer> {
  const pgp = await import('openpgp');
  const pinned = await readKeys(pgp, keys, what);
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const checked = (async () => {
    const { data, signatures } = await pgp.verify({
      message: await pgp.createMessage({ binary: readable }),
      signature: await readSignature(pgp, signature, what),
      verificationKeys: pinned.map(p => p.key),
      format: 'binary',
      config: CONFIG,
    });
    // The data is read before the signature is awaited: the hash is made as it passes. By a reader: openpgp has put another
    // stream in the place of this one, and its iterator would still be that of the first.
    const reader = data.getReader();
    while (!(await reader.read()).done);
    await checkSignatures(signatures, pinned, what);
  })();
  checked.catch(error => writer.abort(error).catch(() => {})); // awaited below
  try {
    for await (const chunk of from) {
      await writer.write(chunk);
      yield chunk;
    }
    await writer.close();
    await checked;
    passed();
  } finally {
    writer.abort().catch(() => {});
    await checked.catch(() => {});
  }
};
