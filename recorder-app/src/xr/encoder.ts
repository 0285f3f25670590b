import type { Encoded, EncodeRequest, RawImage } from './encoder.worker';

/** The encoding worker as a function. */
export class Encoder {
  private readonly worker = new Worker(new URL('./encoder.worker.ts', import.meta.url), { type: 'module' });
  private readonly waiting = new Map<number, (encoded: Encoded) => void>();
  private next = 0;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<Encoded>) => {
      this.waiting.get(data.id)?.(data);
      this.waiting.delete(data.id);
    };
  }

  /** Measure and encode an image; it is handed over and gone after this. */
  encode(image: RawImage | ImageBitmap): Promise<Encoded> {
    const request: EncodeRequest = { id: this.next++, image };
    return new Promise((resolve) => {
      this.waiting.set(request.id, resolve);
      this.worker.postMessage(request, [image instanceof ImageBitmap ? image : image.pixels.buffer]);
    });
  }

  close(): void {
    this.worker.terminate();
  }
}
