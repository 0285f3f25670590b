/** Uploads every queued capture, one after the other, whenever the app is open; tells who wants to know. */
import type { Database, Pairing } from '../storage/database';
import { IngestApi, PairingError, RefusedError } from './api';
import { upload, type UploadProgress } from './queue';

const PAIRING_KEY = 'pairing';
const TELL_MS = 250; // between two notes of progress: each is looked up and drawn anew

export type UploadState =
  | { readonly kind: 'sending'; readonly progress: UploadProgress }
  | { readonly kind: 'unpaired' }
  | { readonly kind: 'refused'; readonly why: string };

export class UploadManager {
  readonly states = new Map<string, UploadState>();
  private readonly listeners = new Set<() => void>();
  private working = false;
  private lastTold = 0;

  constructor(private readonly database: Database) {
    window.addEventListener('online', () => void this.work());
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  async enqueue(captureId: string, pairing: Pairing): Promise<void> {
    this.states.delete(captureId);
    await this.database.updateCapture(captureId, { state: 'queued', pairing });
    void this.work();
  }

  /** Upload what waits; a second tab leaves it to the first. */
  async work(): Promise<void> {
    if (this.working) return;
    this.working = true;
    await navigator.locks.request('upload', { ifAvailable: true }, async (lock) => {
      for (let id = await this.nextId(); lock !== null && id !== undefined; id = await this.nextId()) {
        await this.uploadOne(id);
      }
    });
    this.working = false;
  }

  private async nextId(): Promise<string | undefined> {
    const captures = await this.database.captures();
    const waiting = captures.filter(({ header, state, pairing }) => {
      const stuck = this.states.get(header.capture_id);
      return state === 'queued' && pairing !== null && (stuck === undefined || stuck.kind === 'sending');
    });
    return waiting.at(-1)?.header.capture_id; // the oldest
  }

  private async uploadOne(id: string): Promise<void> {
    const { pairing } = (await this.database.capture(id))!;
    const screen = await navigator.wakeLock.request('screen').catch(() => null);
    try {
      await upload(this.database, new IngestApi(pairing!), id, {
        onProgress: (progress) => this.progressed(id, progress),
      });
      this.states.delete(id);
    } catch (error) {
      if (error instanceof PairingError) this.states.set(id, { kind: 'unpaired' });
      else this.states.set(id, { kind: 'refused', why: error instanceof RefusedError ? error.message : String(error) });
    } finally {
      await screen?.release();
      this.listeners.forEach((listener) => listener());
    }
  }

  private progressed(id: string, progress: UploadProgress): void {
    this.states.set(id, { kind: 'sending', progress });
    const now = performance.now();
    if (progress.waiting === '' && now - this.lastTold < TELL_MS) return;
    this.lastTold = now;
    this.listeners.forEach((listener) => listener());
  }
}

/** Take the pairing from the address that a QR code opened, and keep it out of the history. */
export function readPairing(): Pairing | null {
  const token = /^#pair=([\w.-]+)$/.exec(location.hash)?.[1];
  if (token !== undefined) {
    const server = new URL('../api', location.href).href;
    localStorage.setItem(PAIRING_KEY, JSON.stringify({ token, server } satisfies Pairing));
    history.replaceState(null, '', location.pathname);
  }
  const kept = localStorage.getItem(PAIRING_KEY);
  return kept === null ? null : (JSON.parse(kept) as Pairing);
}

/** A pairing is for one capture: once that has it, it is no longer offered to others. */
export function forgetPairing(): void {
  localStorage.removeItem(PAIRING_KEY);
}
