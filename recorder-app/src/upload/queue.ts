/** Sends one capture file by file, and goes on where it was cut: after a reload, a lost network or a full night. */
import { captureDocument, type BundleFile } from '../capture/format';
import { listFiles, type Database, type StoredFrame } from '../storage/database';
import { TemporaryError, type Completion, type IngestApi, type SignedPut } from './api';

export const BATCH = 12; // addresses signed at once; they hold for minutes only
const SIGN_AHEAD = 6; // files left to send when the next batch is signed and read, so that none waits for that
export const PARALLEL = 3; // more does not fill a phone's uplink any better
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
const MAX_REPAIRS = 3; // rounds in which the server finds damaged files before something else must be wrong

export interface UploadProgress {
  readonly sentFiles: number;
  readonly files: number;
  readonly sentBytes: number;
  readonly bytes: number;
  /** Why it waits, or empty. */
  readonly waiting: string;
}

export interface UploadOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: UploadProgress) => void;
  readonly sleep?: (ms: number) => Promise<void>;
}

interface Item extends BundleFile {
  readonly frame: StoredFrame | null; // null: frames.jsonl
}

/**
 * Upload a capture and return the run that makes its model. Temporary failures are tried again for ever, with
 * exponential backoff and jitter, until `signal` ends it.
 *
 * Throws PairingError if the right to upload has ended, RefusedError if the server does not want the capture.
 */
export async function upload(
  database: Database,
  api: IngestApi,
  captureId: string,
  { signal, onProgress = () => undefined, sleep = wait }: UploadOptions = {},
): Promise<string> {
  let created = false;
  let failures = 0;
  let repairs = 0;
  for (;;) {
    signal?.throwIfAborted();
    const capture = new PendingUpload(database, api, captureId, signal, onProgress);
    try {
      if (!created) await capture.create();
      created = true;
      const completion = await capture.round(() => (failures = 0));
      if (completion?.state === 'complete') {
        await database.updateCapture(captureId, { state: 'uploaded', runId: completion.runId });
        await database.deleteImages(captureId);
        return completion.runId;
      }
      if (completion?.state === 'incomplete' && ++repairs > MAX_REPAIRS) {
        throw new TemporaryError(`the server finds ${completion.files.length} files damaged again and again`);
      }
    } catch (error) {
      if (!(error instanceof TemporaryError)) throw error;
      await capture.report(error.message);
      const delay = Math.min(FIRST_DELAY_MS * 2 ** failures++, MAX_DELAY_MS) * (0.5 + Math.random() / 2);
      await sleep(Math.max(delay, 1000 * error.retryAfterS));
    }
  }
}

/** A file with the address to send it to; `body` is being read. */
interface Ticket {
  readonly item: Item;
  readonly signed: SignedPut;
  readonly body: Promise<Uint8Array<ArrayBuffer>>;
}

/** Hands out files one by one; the next batch gets its addresses while one is sent. */
class Tickets {
  private readonly ready: Ticket[] = [];
  private signing: Promise<void> | null = null;
  private failure: unknown = null;

  constructor(
    private readonly rest: Item[],
    private readonly sign: (batch: Item[]) => Promise<Ticket[]>,
  ) {}

  /** The next file, undefined after the last. Throws what `sign` threw. */
  async take(): Promise<Ticket | undefined> {
    if (this.ready.length <= SIGN_AHEAD && this.rest.length > 0) this.signing ??= this.fill();
    while (this.ready.length === 0 && this.signing !== null) await this.signing;
    if (this.ready.length === 0 && this.failure !== null) throw this.failure as Error;
    return this.ready.shift();
  }

  private async fill(): Promise<void> {
    try {
      this.ready.push(...(await this.sign(this.rest.splice(0, BATCH))));
    } catch (error) {
      this.failure = error; // for who takes the next file; those that have an address are sent first
      this.rest.length = 0;
    }
    this.signing = null;
  }
}

/** One round: what is missing now is sent until something fails; when nothing is missing, the completion. */
class PendingUpload {
  constructor(
    private readonly database: Database,
    private readonly api: IngestApi,
    private readonly captureId: string,
    private readonly signal: AbortSignal | undefined,
    private readonly onProgress: (progress: UploadProgress) => void,
  ) {}

  /** Tell the server of the capture. Again is harmless, and binds a new pairing to a capture that is half there. */
  async create(): Promise<void> {
    await this.api.create((await this.read()).capture);
  }

  async round(onSuccess: () => void): Promise<Completion | null> {
    const { capture, frames, items, framesBytes } = await this.read();
    const missing = items.filter((item) => !isSent(item, capture.uploadedDocument));
    this.tell(items, missing, '');
    if (missing.length > 0) {
      await this.send(items, missing, framesBytes, onSuccess);
      return null;
    }
    const document = captureDocument(
      capture.header,
      frames.map((frame) => frame.record),
      items.map(bare),
    );
    const completion = await this.api.complete(this.captureId, document);
    if (completion.state === 'incomplete') await this.forget(items, completion.files);
    return completion;
  }

  async report(waiting: string): Promise<void> {
    const { capture, items } = await this.read();
    this.tell(
      items,
      items.filter((item) => !isSent(item, capture.uploadedDocument)),
      waiting,
    );
  }

  private async read() {
    const capture = await this.database.capture(this.captureId);
    if (capture === undefined) throw new Error(`there is no capture ${this.captureId} on this phone`);
    const frames = await this.database.frames(this.captureId);
    const { framesBytes, framesFile, images } = await listFiles(frames);
    const items: Item[] = images.map((file, index) => ({ ...file, frame: frames[index]! }));
    items.push({ ...framesFile, frame: null });
    return { capture, frames, items, framesBytes };
  }

  /** Send what is missing, `PARALLEL` files at a time; one that fails does not keep the others from being sent. */
  private async send(
    items: readonly Item[],
    missing: readonly Item[],
    framesBytes: Uint8Array<ArrayBuffer>,
    onSuccess: () => void,
  ): Promise<void> {
    const left = new Set(missing);
    const marks: Promise<unknown>[] = []; // the next file does not wait for them
    let failure: unknown = null;
    let failuresInARow = 0;
    const failed = (error: unknown): void => {
      failure ??= error;
      failuresInARow++;
    };
    const tickets = new Tickets([...missing], (batch) => this.sign(batch, framesBytes));
    const send = async ({ item, signed, body }: Ticket): Promise<void> => {
      await this.api.put(signed, await body, this.signal);
      marks.push(this.mark(item, true).catch(failed));
      left.delete(item);
      failuresInARow = 0;
      onSuccess();
      this.tell(items, [...left], '');
    };
    const worker = async (): Promise<void> => {
      for (let ticket = await tickets.take(); ticket !== undefined; ticket = await tickets.take()) {
        await send(ticket).catch(failed);
        if (failuresInARow >= PARALLEL) return; // it is not the file
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, () => worker().catch(failed)));
    await Promise.all(marks);
    if (failure !== null) throw failure as Error;
  }

  private async sign(batch: readonly Item[], framesBytes: Uint8Array<ArrayBuffer>): Promise<Ticket[]> {
    const bodies = batch.map(async ({ frame }) =>
      frame === null ? framesBytes : this.database.image(this.captureId, frame.record.i),
    );
    bodies.forEach((body) => void body.catch(() => undefined)); // thrown where it is sent, if it comes to that
    const uploads = await this.api.presign(this.captureId, batch.map(bare));
    return batch.map((item, index) => {
      const signed = uploads.find(({ name }) => name === item.name);
      if (signed === undefined) throw new TemporaryError(`the server signed no address for ${item.name}`);
      return { item, signed, body: bodies[index]! };
    });
  }

  private mark({ frame, sha256 }: Item, sent: boolean): Promise<unknown> {
    if (frame !== null) return this.database.markUploaded(this.captureId, frame.record.i, sent);
    return this.database.updateCapture(this.captureId, { uploadedDocument: sent ? sha256 : null });
  }

  private async forget(items: readonly Item[], names: readonly string[]): Promise<void> {
    for (const item of items) if (names.includes(item.name)) await this.mark(item, false);
  }

  private tell(items: readonly Item[], missing: readonly Item[], waiting: string): void {
    const bytes = (of: readonly Item[]): number => of.reduce((sum, item) => sum + item.size, 0);
    this.onProgress({
      sentFiles: items.length - missing.length,
      files: items.length,
      sentBytes: bytes(items) - bytes(missing),
      bytes: bytes(items),
      waiting,
    });
  }
}

function isSent(item: Item, uploadedDocument: string | null): boolean {
  return item.frame === null ? uploadedDocument === item.sha256 : item.frame.uploaded;
}

function bare({ name, size, sha256 }: BundleFile): BundleFile {
  return { name, size, sha256 };
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
