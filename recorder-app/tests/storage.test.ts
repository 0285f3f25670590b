import { IDBFactory } from 'fake-indexeddb';
import 'fake-indexeddb/auto';
import { unzipSync, strFromU8 } from 'fflate';
import { describe, expect, it } from 'vitest';
import { captureDocument, framesJsonl, newCaptureId, sha256 } from '../src/capture/format';
import { Database, StorageFullError } from '../src/storage/database';
import { exportZip } from '../src/storage/zip';
import { addFrames, header, record, stored } from './recording';

const ID = header().capture_id;

async function recorded(factory: IDBFactory, frames: number): Promise<Database> {
  const database = await Database.open(factory);
  await database.putCapture(stored());
  await addFrames(database, ID, frames);
  return database;
}

describe('the database', () => {
  it('keeps every frame when the page is gone', async () => {
    const factory = new IDBFactory();
    const before = await recorded(factory, 3);
    const [first] = await before.frames(ID);
    before.close();
    const after = await Database.open(factory);
    expect((await after.captures()).map((capture) => capture.header.capture_id)).toEqual([ID]);
    expect((await after.frames(ID)).map((frame) => frame.record.i)).toEqual([0, 1, 2]);
    expect(await sha256(await after.image(ID, 0))).toBe(first!.sha256);
  });

  it('keeps captures apart', async () => {
    const database = await recorded(new IDBFactory(), 2);
    const other = `${ID}-b`;
    await database.putCapture(stored(other));
    await addFrames(database, other, 4);
    await database.deleteCapture(ID);
    expect([(await database.frames(ID)).length, (await database.frames(other)).length]).toEqual([0, 4]);
    await expect(database.image(ID, 0)).rejects.toThrow('no longer on this phone');
    await expect(database.image(other, 3)).resolves.toHaveLength(1000);
  });

  it('changes single fields of a capture', async () => {
    const database = await recorded(new IDBFactory(), 0);
    await database.updateCapture(ID, { notes: 'left side is oily' });
    expect(await database.capture(ID)).toMatchObject({ notes: 'left side is oily', state: 'queued' });
  });

  it('stores a frame whole or not at all when the phone is full', async () => {
    const database = await recorded(new IDBFactory(), 1);
    // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
    const add = IDBObjectStore.prototype.add;
    IDBObjectStore.prototype.add = function (this: IDBObjectStore, value: unknown) {
      if (this.name === 'images') {
        // What Chromium does when the quota is reached: the transaction is aborted with this error.
        const transaction = this.transaction;
        Object.defineProperty(transaction, 'error', { value: new DOMException('full', 'QuotaExceededError') });
        queueMicrotask(() => transaction.abort());
      }
      return add.call(this, value);
    };
    try {
      await expect(database.addFrame(ID, record(1), new Uint8Array(9), new Uint8Array(1))).rejects.toThrow(
        StorageFullError,
      );
    } finally {
      IDBObjectStore.prototype.add = add;
    }
    expect((await database.frames(ID)).map((frame) => frame.record.i)).toEqual([0]);
  });
});

describe('the bundle', () => {
  it('lists each file with its size and hash, capture.json last', async () => {
    const database = await recorded(new IDBFactory(), 3);
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    await exportZip(database, ID, (chunk) => chunks.push(chunk));
    const files = unzipSync(new Uint8Array(await new Blob(chunks).arrayBuffer()));
    expect(Object.keys(files).at(-1)).toBe('capture.json');
    const document = JSON.parse(strFromU8(files['capture.json']!)) as ReturnType<typeof captureDocument>;
    expect(document.frame_count).toBe(3);
    for (const file of document.files) {
      const bytes = new Uint8Array(files[file.name]!);
      expect([file.size, file.sha256]).toEqual([bytes.length, await sha256(bytes)]);
    }
    expect(Object.keys(files).length).toBe(document.files.length + 1);
  });

  it('counts time from the first frame that is left', () => {
    const lines = new TextDecoder()
      .decode(framesJsonl([record(4), record(6)]))
      .trimEnd()
      .split('\n');
    expect(lines.map((line) => (JSON.parse(line) as { t: number }).t)).toEqual([0, 1]);
  });

  it('is of version 1.1 only where it needs to be', () => {
    expect(captureDocument(header(), [record(0)], []).version).toBe('1.0');
    const support = [{ id: 's', p: [0, 0, 0], q: [0, 0, 0, 1], tracked: true }] as const;
    expect(captureDocument(header(), [{ ...record(0), support }], []).version).toBe('1.1');
  });

  it('has an id that keeps the format', () => {
    expect(newCaptureId(new Date('2026-11-23T23:59:00Z'), new Uint8Array(5).fill(10))).toBe('scan-20261123-0a0a0a0a0a');
    expect(newCaptureId(new Date())).toMatch(/^[a-z0-9-]{3,64}$/);
  });
});
