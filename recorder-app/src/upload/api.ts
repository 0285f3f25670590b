/** The ingest API as the phone uses it (its OpenAPI document is served with it). */
import type { BundleFile, CaptureDocument } from '../capture/format';
import type { Pairing, StoredCapture } from '../storage/database';

export interface SignedPut {
  readonly name: string;
  readonly url: string;
  readonly headers: Record<string, string>;
}

export type Completion =
  | { readonly state: 'complete'; readonly runId: string }
  /** These files are missing or damaged in the store: send them again. */
  | { readonly state: 'incomplete'; readonly files: readonly string[] };

/** Trying again later may help: no network, or a server in trouble. */
export class TemporaryError extends Error {
  constructor(
    message: string,
    readonly retryAfterS = 0,
  ) {
    super(message);
  }
}

/** The pairing has ended or never was: a new QR code is needed. The frames stay on the phone. */
export class PairingError extends Error {}

/** The server refuses this capture; sending it again changes nothing. */
export class RefusedError extends Error {}

export class IngestApi {
  constructor(
    private readonly pairing: Pairing,
    private readonly send: typeof fetch = (...request) => fetch(...request),
  ) {}

  async create({ header, notes }: StoredCapture): Promise<void> {
    const { capture_id, name, recorded_at } = header;
    await this.post('captures', { capture_id, name, recorded_at, notes });
  }

  async presign(captureId: string, files: readonly BundleFile[]): Promise<SignedPut[]> {
    const answer = await this.post(`captures/${captureId}/presign`, { files });
    return ((await answer.json()) as { uploads: SignedPut[] }).uploads;
  }

  async complete(captureId: string, document: CaptureDocument): Promise<Completion> {
    const answer = await this.post(`captures/${captureId}/complete`, document);
    const body = (await answer.json()) as { run_id: string | null; damaged: string[] };
    if (body.run_id === null) return { state: 'incomplete', files: body.damaged };
    return { state: 'complete', runId: body.run_id };
  }

  /** Send one file to the store. What is already there under that name stays; `complete` compares it. */
  async put(signed: SignedPut, body: Uint8Array<ArrayBuffer>, signal?: AbortSignal): Promise<void> {
    const answer = await this.request(signed.url, { method: 'PUT', headers: signed.headers, body, ...given(signal) });
    // The store answers 412 if the object is there: an earlier try succeeded and only its answer was lost.
    if (answer.ok || answer.status === 412) return;
    // An expired address answers 403; a new one is asked for in the next round.
    throw new TemporaryError(`the store answered ${answer.status}`);
  }

  private async post(path: string, body: unknown): Promise<Response> {
    const answer = await this.request(`${this.pairing.server}/${path}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${this.pairing.token}` },
      body: JSON.stringify(body),
    });
    if (answer.ok) return answer;
    const message = await detailOf(answer);
    if (answer.status === 401 || answer.status === 403) throw new PairingError(message);
    if (answer.status === 429 || answer.status >= 500) {
      throw new TemporaryError(message, Number(answer.headers.get('Retry-After') ?? 0));
    }
    throw new RefusedError(message);
  }

  private async request(url: string, init: RequestInit): Promise<Response> {
    try {
      return await this.send(url, init);
    } catch (error) {
      if (init.signal?.aborted === true) throw error;
      throw new TemporaryError('no connection');
    }
  }
}

async function detailOf(answer: Response): Promise<string> {
  try {
    const { detail } = (await answer.json()) as { detail: unknown };
    return typeof detail === 'string' ? detail : JSON.stringify(detail);
  } catch {
    return `the server answered ${answer.status}`;
  }
}

function given(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal === undefined ? {} : { signal };
}
