/** Measures and encodes images off the main thread: raw pixels of AR's camera, and photos as the browser decodes them. */
import { flipRows, JPEG_QUALITY, measure } from '../capture/pixels';

const THUMBNAIL_QUALITY = 0.7;
const THUMBNAIL_WIDTH = 160;

export interface RawImage {
  readonly pixels: Uint8Array<ArrayBuffer>; // RGBA, bottom row first
  readonly width: number;
  readonly height: number;
}

export interface EncodeRequest {
  readonly id: number;
  readonly image: RawImage | ImageBitmap;
}

export interface Encoded {
  readonly id: number;
  readonly width: number;
  readonly height: number;
  readonly jpeg: Uint8Array<ArrayBuffer>;
  readonly thumbnail: Uint8Array<ArrayBuffer>;
  readonly luma: number;
  readonly sharpness: number;
}

self.onmessage = async ({ data: { id, image: given } }: MessageEvent<EncodeRequest>) => {
  const { width, height } = given;
  const image = new OffscreenCanvas(width, height);
  const drawing = image.getContext('2d')!;
  if (given instanceof ImageBitmap) drawing.drawImage(given, 0, 0);
  else drawing.putImageData(new ImageData(flipRows(given.pixels, width, height), width, height), 0, 0);
  const pixels = given instanceof ImageBitmap ? drawing.getImageData(0, 0, width, height).data : given.pixels;
  if (given instanceof ImageBitmap) given.close();
  const measured = measure(pixels, width, height);
  const small = new OffscreenCanvas(THUMBNAIL_WIDTH, Math.round((THUMBNAIL_WIDTH * height) / width));
  small.getContext('2d')!.drawImage(image, 0, 0, small.width, small.height);
  const [jpeg, thumbnail] = await Promise.all([bytes(image, JPEG_QUALITY), bytes(small, THUMBNAIL_QUALITY)]);
  const answer: Encoded = { id, width, height, jpeg, thumbnail, ...measured };
  self.postMessage(answer, { transfer: [jpeg.buffer, thumbnail.buffer] });
};

async function bytes(canvas: OffscreenCanvas, quality: number): Promise<Uint8Array<ArrayBuffer>> {
  const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality });
  return new Uint8Array(await blob.arrayBuffer());
}
