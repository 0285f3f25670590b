/** Measures and encodes camera images off the main thread. */
import { flipRows, measure } from '../capture/pixels';

const QUALITY = 0.92; // under 2.5 MB at 12 MP, and no artefacts that features stick to
const THUMBNAIL_QUALITY = 0.7;
const THUMBNAIL_WIDTH = 160;

export interface EncodeRequest {
  readonly id: number;
  readonly pixels: Uint8Array<ArrayBuffer>; // RGBA, bottom row first
  readonly width: number;
  readonly height: number;
}

export interface Encoded {
  readonly id: number;
  readonly jpeg: Uint8Array<ArrayBuffer>;
  readonly thumbnail: Uint8Array<ArrayBuffer>;
  readonly luma: number;
  readonly sharpness: number;
}

self.onmessage = async ({ data: { id, pixels, width, height } }: MessageEvent<EncodeRequest>) => {
  const measured = measure(pixels, width, height);
  const image = new OffscreenCanvas(width, height);
  image.getContext('2d')!.putImageData(new ImageData(flipRows(pixels, width, height), width, height), 0, 0);
  const small = new OffscreenCanvas(THUMBNAIL_WIDTH, Math.round((THUMBNAIL_WIDTH * height) / width));
  small.getContext('2d')!.drawImage(image, 0, 0, small.width, small.height);
  const [jpeg, thumbnail] = await Promise.all([bytes(image, QUALITY), bytes(small, THUMBNAIL_QUALITY)]);
  const answer: Encoded = { id, jpeg, thumbnail, ...measured };
  self.postMessage(answer, { transfer: [jpeg.buffer, thumbnail.buffer] });
};

async function bytes(canvas: OffscreenCanvas, quality: number): Promise<Uint8Array<ArrayBuffer>> {
  const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality });
  return new Uint8Array(await blob.arrayBuffer());
}
