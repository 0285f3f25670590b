/**
 * Captures on the phone, in IndexedDB: a frame is durable as soon as `addFrame` resolves.
 *
 * Images lie in a store of their own, so that listing frames reads no pixels. Everything is plain data; nothing is
 * kept in memory.
 */
import {
  FRAMES_FILE,
  framesJsonl,
  sha256,
  type BundleFile,
  type CaptureHeader,
  type FrameRecord,
} from '../capture/format';

const NAME = 'scan2twin-recorder';
const VERSION = 1;

/** Where a capture stands: being recorded, ended, waiting for its upload, in the server's store. */
export type CaptureState = 'recording' | 'review' | 'queued' | 'uploaded';

/** Which server takes the captures, and the right to upload one. */
export interface Pairing {
  readonly token: string;
  readonly server: string; // address of the ingest API
}

export interface StoredCapture {
  readonly header: CaptureHeader;
  readonly notes: string;
  readonly state: CaptureState;
  readonly pairing: Pairing | null;
  readonly runId: string | null;
  /** Name and SHA-256 of the documents already uploaded. */
  readonly uploadedDocument: string | null;
}

export interface StoredFrame {
  readonly captureId: string;
  readonly record: FrameRecord;
  readonly size: number;
  readonly sha256: string;
  readonly thumbnail: Uint8Array<ArrayBuffer>;
  readonly uploaded: boolean;
}

interface StoredImage {
  readonly captureId: string;
  readonly i: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** The phone has no room left for the frame; nothing of it was stored. */
export class StorageFullError extends Error {}

export class Database {
  private constructor(private readonly db: IDBDatabase) {}

  static async open(factory: IDBFactory = indexedDB): Promise<Database> {
    const request = factory.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('captures', { keyPath: 'header.capture_id' });
      request.result.createObjectStore('frames', { keyPath: ['captureId', 'record.i'] });
      request.result.createObjectStore('images', { keyPath: ['captureId', 'i'] });
    };
    return new Database(await result(request));
  }

  close(): void {
    this.db.close();
  }

  async putCapture(capture: StoredCapture): Promise<void> {
    await this.write(['captures'], (stores) => stores('captures').put(capture));
  }

  /** Change some fields of a capture in one step. */
  async updateCapture(id: string, change: Partial<StoredCapture>): Promise<StoredCapture> {
    const transaction = this.db.transaction('captures', 'readwrite');
    const store = transaction.objectStore('captures');
    const changed = { ...(await result<StoredCapture>(store.get(id))), ...change };
    store.put(changed);
    await finished(transaction);
    return changed;
  }

  async capture(id: string): Promise<StoredCapture | undefined> {
    return result<StoredCapture | undefined>(this.db.transaction('captures').objectStore('captures').get(id));
  }

  /** Every capture, the latest first. */
  async captures(): Promise<StoredCapture[]> {
    const all = await result<StoredCapture[]>(this.db.transaction('captures').objectStore('captures').getAll());
    return all.sort((a, b) => b.header.recorded_at.localeCompare(a.header.recorded_at));
  }

  /** Store a frame with its image. Raises StorageFullError when the phone has no room. */
  async addFrame(
    captureId: string,
    record: FrameRecord,
    jpeg: Uint8Array<ArrayBuffer>,
    thumbnail: Uint8Array<ArrayBuffer>,
  ): Promise<StoredFrame> {
    const frame: StoredFrame = {
      captureId,
      record,
      size: jpeg.length,
      sha256: await sha256(jpeg),
      thumbnail,
      uploaded: false,
    };
    const image: StoredImage = { captureId, i: record.i, bytes: jpeg };
    await this.write(['frames', 'images'], (stores) => {
      stores('frames').add(frame);
      stores('images').add(image);
    });
    return frame;
  }

  /** The frames of a capture in recording order, without their images. */
  async frames(captureId: string): Promise<StoredFrame[]> {
    return result<StoredFrame[]>(this.db.transaction('frames').objectStore('frames').getAll(ofCapture(captureId)));
  }

  async image(captureId: string, i: number): Promise<Uint8Array<ArrayBuffer>> {
    const stored = await result<StoredImage | undefined>(
      this.db.transaction('images').objectStore('images').get([captureId, i]),
    );
    if (stored === undefined) throw new Error(`the image of frame ${i} is no longer on this phone`);
    return stored.bytes;
  }

  async markUploaded(captureId: string, i: number, uploaded: boolean): Promise<void> {
    const transaction = this.db.transaction('frames', 'readwrite');
    const store = transaction.objectStore('frames');
    store.put({ ...(await result<StoredFrame>(store.get([captureId, i]))), uploaded });
    await finished(transaction);
  }

  async deleteFrame(captureId: string, i: number): Promise<void> {
    await this.write(['frames', 'images'], (stores) => {
      stores('frames').delete([captureId, i]);
      stores('images').delete([captureId, i]);
    });
  }

  /** Give back the room of a capture's images; its row and thumbnails stay. */
  async deleteImages(captureId: string): Promise<void> {
    await this.write(['images'], (stores) => stores('images').delete(ofCapture(captureId)));
  }

  async deleteCapture(captureId: string): Promise<void> {
    await this.write(['captures', 'frames', 'images'], (stores) => {
      stores('captures').delete(captureId);
      stores('frames').delete(ofCapture(captureId));
      stores('images').delete(ofCapture(captureId));
    });
  }

  private async write(names: string[], change: (store: (name: string) => IDBObjectStore) => unknown): Promise<void> {
    const transaction = this.db.transaction(names, 'readwrite');
    change((name) => transaction.objectStore(name));
    await finished(transaction);
  }
}

/** The bundle's documents and files as they would leave the phone now; `images` are in the order of `frames`. */
export async function listFiles(
  frames: readonly StoredFrame[],
): Promise<{ framesFile: BundleFile; framesBytes: Uint8Array<ArrayBuffer>; images: BundleFile[] }> {
  const framesBytes = framesJsonl(frames.map((frame) => frame.record));
  return {
    framesBytes,
    framesFile: { name: FRAMES_FILE, size: framesBytes.length, sha256: await sha256(framesBytes) },
    images: frames.map(({ record, size, sha256: hash }) => ({ name: record.file, size, sha256: hash })),
  };
}

function ofCapture(id: string): IDBKeyRange {
  return IDBKeyRange.bound([id], [id, []]); // an array sorts after every number
}

function result<T>(request: IDBRequest): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result as T);
    request.onerror = () => reject(translated(request.error));
  });
}

function finished(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(translated(transaction.error));
  });
}

function translated(error: DOMException | null): Error {
  if (error?.name === 'QuotaExceededError') return new StorageFullError(error.message);
  return error ?? new Error('the transaction was ended');
}
