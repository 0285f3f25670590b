/** The queue against a small HTTP server that fails on demand; the real server is tested from tests/recorder. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { IDBFactory } from 'fake-indexeddb';
import 'fake-indexeddb/auto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BundleFile } from '../src/capture/format';
import { Database } from '../src/storage/database';
import { IngestApi, PairingError, RefusedError } from '../src/upload/api';
import { upload, type UploadProgress } from '../src/upload/queue';
import { addFrames, header, stored } from './recording';

const ID = header().capture_id;
const FRAMES = 20;

class Store {
  readonly objects = new Map<string, Buffer>();
  readonly received: string[] = [];
  parallel = 0;
  mostParallel = 0;
  /** Answers the n-th request itself, or not. */
  fault: (n: number, request: IncomingMessage, response: ServerResponse) => boolean = () => false;
  private requests = 0;
  private readonly server = createServer((request, response) => {
    void this.handle(request, response);
  });

  async start(): Promise<string> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }

  private async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.fault(this.requests++, request, response)) return;
    const sends = request.method === 'PUT' ? 1 : 0;
    this.mostParallel = Math.max(this.mostParallel, (this.parallel += sends));
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    await new Promise((resolve) => setTimeout(resolve, 5));
    this.parallel -= sends;
    const [, route, ...rest] = (request.url ?? '').split('/');
    if (route === 'store') {
      const name = rest.join('/');
      this.received.push(name);
      const known = this.objects.has(name);
      if (!known) this.objects.set(name, body);
      answer(response, known ? 412 : 200, {});
      return;
    }
    const files = (JSON.parse(body.toString()) as { files?: BundleFile[] }).files ?? [];
    if (rest[1] === 'presign') {
      const uploads = files.map(({ name }) => ({
        name,
        url: `http://${request.headers.host!}/store/${name}`,
        headers: {},
      }));
      answer(response, 200, { uploads });
      return;
    }
    if (rest[1] !== 'complete') {
      answer(response, 201, {});
      return;
    }
    const damaged = files.filter(({ name, sha256 }) => hash(this.objects.get(name)) !== sha256).map(({ name }) => name);
    damaged.forEach((name) => this.objects.delete(name));
    answer(response, 200, { run_id: damaged.length > 0 ? null : 'run-1', damaged });
  }
}

function answer(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body));
}

function hash(bytes: Buffer | undefined): string {
  return createHash('sha256')
    .update(bytes ?? '')
    .digest('hex');
}

let store: Store;
let api: IngestApi;
let factory: IDBFactory;
let database: Database;
const sleep = (): Promise<void> => Promise.resolve();

beforeEach(async () => {
  store = new Store();
  api = new IngestApi({ token: 't', server: await store.start() });
  factory = new IDBFactory();
  database = await Database.open(factory);
  await database.putCapture(stored());
  await addFrames(database, ID, FRAMES);
});
afterEach(() => store.stop());

describe('an upload', () => {
  it('sends every file once, three at a time, and gives the room back', async () => {
    const seen: UploadProgress[] = [];
    expect(await upload(database, api, ID, { sleep, onProgress: (progress) => seen.push(progress) })).toBe('run-1');
    expect(store.objects.size).toBe(FRAMES + 1);
    expect(store.received.length).toBe(FRAMES + 1);
    expect(store.mostParallel).toBeLessThanOrEqual(3);
    expect(seen.at(-1)).toMatchObject({ sentFiles: FRAMES + 1, files: FRAMES + 1, waiting: '' });
    expect(seen.at(-1)!.sentBytes).toBe(seen.at(-1)!.bytes);
    expect(await database.capture(ID)).toMatchObject({ state: 'uploaded', runId: 'run-1' });
    await expect(database.image(ID, 0)).rejects.toThrow();
  });

  it('survives cut connections, server errors and lost answers', async () => {
    store.fault = (n, request, response) => {
      if (n % 5 === 1) request.socket.destroy();
      else if (n % 5 === 3) answer(response, 503, { detail: 'busy' });
      else return false;
      return true;
    };
    expect(await upload(database, api, ID, { sleep })).toBe('run-1');
    expect(store.objects.size).toBe(FRAMES + 1);
  });

  it('waits longer after each failure, and as long as the server asks', async () => {
    const waits: number[] = [];
    store.fault = (n, _, response) => {
      if (n >= 4) return false;
      response.setHeader('Retry-After', n === 3 ? '9' : '0');
      answer(response, 429, { detail: 'slow down' });
      return true;
    };
    const noted = (ms: number): Promise<void> => {
      waits.push(ms);
      return Promise.resolve();
    };
    await upload(database, api, ID, { sleep: noted });
    expect(waits.length).toBe(4);
    [500, 1000, 2000].forEach((full, i) => {
      expect(waits[i]).toBeGreaterThanOrEqual(full / 2);
      expect(waits[i]).toBeLessThanOrEqual(full);
    });
    expect(waits[3]).toBe(9000);
  });

  it('goes on after the page was closed, and sends no file twice', async () => {
    const closed = new AbortController();
    store.fault = () => {
      if (store.objects.size >= 8) closed.abort();
      return false;
    };
    await expect(upload(database, api, ID, { sleep, signal: closed.signal })).rejects.toThrow();
    store.fault = () => false;
    const before = store.received.length;
    expect(before).toBeLessThan(FRAMES);
    const reopened = await Database.open(factory);
    expect(await upload(reopened, api, ID, { sleep })).toBe('run-1');
    // Files whose answer the closing page did not hear, three at most, are tried again.
    expect(store.received.length).toBeLessThanOrEqual(FRAMES + 1 + 3);
  });

  it('sends again what the server finds damaged', async () => {
    store.objects.set('images/000003.jpg', Buffer.from('left by somebody else'));
    expect(await upload(database, api, ID, { sleep })).toBe('run-1');
    expect(store.objects.get('images/000003.jpg')!.length).toBe(1000);
  });

  it.each([
    [401, PairingError],
    [403, PairingError],
    [409, RefusedError],
    [422, RefusedError],
  ])('stops at %i and keeps the frames', async (status, kind) => {
    store.fault = (_, request, response) => {
      request.resume();
      answer(response, status, { detail: 'no' });
      return true;
    };
    await expect(upload(database, api, ID, { sleep })).rejects.toThrow(kind);
    await expect(database.image(ID, 0)).resolves.toHaveLength(1000);
  });
});
