/** Plain photos, where there is no AR: nobody knows where they were taken from, until the pipeline finds it out. */
import { imageName, newCaptureId } from '../capture/format';
import { MAX_FRAMES } from '../guide/keyframe';
import type { Database, Pairing } from '../storage/database';
import type { EncodedImage } from './recording';

export const NO_TRACKER = 'none';
const LONG_SIDE = 4096; // pixels: what the pipeline looks at is smaller still

export type EncodePhoto = (
  image: ImageBitmap,
) => Promise<EncodedImage & { readonly width: number; readonly height: number }>;

export class PhotoCapture {
  readonly id = newCaptureId(new Date());
  private readonly start = performance.now();
  private next = 0;
  private begun: Promise<void> | null = null;

  constructor(
    private readonly database: Database,
    private readonly encode: EncodePhoto,
    private readonly name: string,
    private readonly pairing: Pairing | null,
    private readonly platform: string,
  ) {}

  get count(): number {
    return this.next;
  }

  /**
   * Keep a photo or a picture of a video, upright as it is shown. Raises StorageFullError, or DOMException if it
   * cannot be decoded.
   */
  async add(source: Blob | HTMLVideoElement): Promise<void> {
    if (this.next >= MAX_FRAMES) return;
    const image = await this.encode(await upright(source));
    await (this.begun ??= this.begin()); // with the first photo: no empty captures
    const i = this.next++;
    await this.database.addFrame(
      this.id,
      {
        i,
        file: imageName(i),
        t: (performance.now() - this.start) / 1000,
        width: image.width,
        height: image.height,
        intrinsics: null,
        pose_world: null,
        anchor: null,
        tracking: 'lost',
        sharpness: image.sharpness,
        luma: image.luma,
        angular_velocity: null,
        linear_velocity: null,
      },
      image.jpeg,
      image.thumbnail,
    );
  }

  private async begin(): Promise<void> {
    await this.database.putCapture({
      header: {
        capture_id: this.id,
        name: this.name,
        recorded_at: new Date().toISOString(),
        device: { model: 'unknown', platform: this.platform, tracker: NO_TRACKER },
        reference_anchor: null,
        anchors: [],
        object: null,
        scale: { metric: false, source: NO_TRACKER },
        camera: null,
      },
      notes: '',
      state: 'review',
      pairing: this.pairing,
      runId: null,
      uploadedDocument: null,
    });
  }
}

/** Decode, turn upright as EXIF says, and bound the size. */
async function upright(source: Blob | HTMLVideoElement): Promise<ImageBitmap> {
  const whole = await createImageBitmap(source, { imageOrientation: 'from-image' });
  const share = LONG_SIDE / Math.max(whole.width, whole.height);
  if (share >= 1) return whole;
  const size = {
    resizeWidth: Math.round(share * whole.width),
    resizeHeight: Math.round(share * whole.height),
    resizeQuality: 'high' as const,
  };
  const scaled = await createImageBitmap(whole, size);
  whole.close();
  return scaled;
}
