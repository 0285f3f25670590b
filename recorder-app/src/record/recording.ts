/** One recording: decides which frames to take, and keeps them. Knows no WebXR and no screen. */
import { imageName, newCaptureId, type Anchor, type FrameRecord, type TrackedAnchor } from '../capture/format';
import { relativeTo, subtract, type Pose, type Vec3 } from '../geometry/pose';
import { Dome } from '../guide/coverage';
import {
  blocksShutter,
  imageWarnings,
  isWorldCorrection,
  motionBetween,
  poseWarnings,
  type Box,
  type Motion,
  type Warning,
} from '../guide/gates';
import { isDue, MAX_FRAMES, type Moment } from '../guide/keyframe';
import { StorageFullError, type Database, type Pairing } from '../storage/database';
import type { ArFrame } from '../xr/session';

const MAX_IN_WORK = 2; // images being read and encoded at a time: 50 MB each at 12 MP
const STICKY_S = 1.5; // how long a warning of an image stays to be read

/** What encoding makes of the pixels. */
export interface EncodedImage {
  readonly jpeg: Uint8Array<ArrayBuffer>;
  readonly thumbnail: Uint8Array<ArrayBuffer>;
  readonly luma: number;
  readonly sharpness: number;
}
export type Encode = (pixels: Uint8Array<ArrayBuffer>, width: number, height: number) => Promise<EncodedImage>;

export interface RecordingEvents {
  /** A frame is safe on the phone. */
  readonly onKept: (count: number) => void;
  readonly onCorrection: () => void;
  /** No more frames can be taken. */
  readonly onFull: (why: 'storage' | 'frames') => void;
}

export class Recording {
  readonly dome = new Dome();
  readonly id = newCaptureId(new Date());
  count = 0;
  paused = false;
  private stopped = false;
  private next = 0;
  private readonly inWork = new Set<Promise<void>>();
  private readonly sharpness: number[] = [];
  private lastShot: Moment | null = null;
  private before: { readonly frame: ArFrame; readonly camera: Pose } | null = null;
  /** What was wrong with the last image; it is shown from the frame after it is known on. */
  private imageWarning: { readonly warning: Warning; until: number | null } | null = null;
  private manual = false;

  constructor(
    private readonly database: Database,
    private readonly encode: Encode,
    private readonly box: Box,
    private readonly events: RecordingEvents,
  ) {}

  /** Write the capture's row; frames can be added from then on. */
  async begin(name: string, device: { model: string; platform: string }, anchors: Anchor[], pairing: Pairing | null) {
    await this.database.putCapture({
      header: {
        capture_id: this.id,
        name,
        recorded_at: new Date().toISOString(),
        device: { ...device, tracker: 'arcore' },
        reference_anchor: 'object',
        anchors,
        object: this.box,
        scale: { metric: true, source: 'arcore' },
        camera: { focus: 'fixed', exposure_locked: false }, // Chrome's AR sessions on ARCore
      },
      notes: '',
      state: 'recording',
      pairing,
      runId: null,
      uploadedDocument: null,
    });
  }

  /** Take the next good frame whether it is due or not. */
  shoot(): void {
    this.manual = true;
  }

  /** Look at a frame, take it if it is due and good; return what to warn of, worst first. */
  see(frame: ArFrame): Warning[] {
    const { anchor } = frame;
    const usable = frame.camera !== null && anchor?.tracked === true;
    const camera = usable ? relativeTo(anchor, frame.camera) : null;
    const motion = this.follow(frame, camera);
    const warnings = poseWarnings(usable ? frame.tracking : 'lost', camera, frame.view, this.box, motion);
    if (this.imageWarning !== null) {
      this.imageWarning.until ??= frame.time + STICKY_S;
      if (frame.time < this.imageWarning.until) warnings.push(this.imageWarning.warning);
    }
    if (camera === null || this.paused || this.stopped || this.inWork.size >= MAX_IN_WORK) return warnings;
    const now: Moment = { offset: subtract(camera.p, this.box.center), time: frame.time };
    const good = !blocksShutter(poseWarnings(frame.tracking, camera, frame.view, this.box, motion));
    if (good && (this.manual || isDue(now, this.lastShot, this.dome))) this.take(frame, now, motion, anchor!);
    return warnings;
  }

  /** Wait for the frames in work, and write the anchors as they are at the end. */
  async finish(anchorPoses: readonly { readonly id: string; readonly pose: Pose }[]): Promise<void> {
    this.stopped = true;
    await Promise.all(this.inWork);
    const capture = await this.database.capture(this.id);
    if (capture === undefined) return;
    const anchors = capture.header.anchors.map((anchor) => ({
      ...anchor,
      pose_last: anchorPoses.find(({ id }) => id === anchor.id)?.pose ?? anchor.pose_last,
    }));
    await this.database.updateCapture(this.id, { state: 'review', header: { ...capture.header, anchors } });
  }

  /** Speed since the frame before, relative to the anchor; and whether the tracker has corrected itself. */
  private follow(frame: ArFrame, camera: Pose | null): Motion {
    const { before } = this;
    this.before = camera === null ? null : { frame, camera };
    if (before === null || camera === null) return { linear: 0, angular: 0 };
    if (isWorldCorrection(before.frame.anchor!, frame.anchor!)) this.events.onCorrection();
    return motionBetween(before.camera, camera, frame.time - before.frame.time);
  }

  private take(frame: ArFrame, now: Moment, motion: Motion, anchor: TrackedAnchor): void {
    const manual = this.manual;
    this.manual = false;
    const before = this.lastShot;
    this.lastShot = now;
    this.dome.add(now.offset); // at once, so that the bin is not taken twice while the image is in work
    const i = this.next++; // now, so that frames keep the order in which they were seen
    const record = (image: EncodedImage): FrameRecord => ({
      i,
      file: imageName(i),
      t: frame.time,
      width: frame.view.width,
      height: frame.view.height,
      intrinsics: frame.view.intrinsics,
      pose_world: frame.camera!,
      anchor,
      support: frame.support,
      tracking: frame.tracking,
      sharpness: image.sharpness,
      luma: image.luma,
      angular_velocity: motion.angular,
      linear_velocity: motion.linear,
    });
    const work = this.keep(frame, manual, record).then((kept) => {
      this.inWork.delete(work);
      if (kept) return;
      this.dome.remove(now.offset);
      if (this.lastShot === now) this.lastShot = before;
    });
    this.inWork.add(work);
  }

  /** Read, encode and store a frame; false if it was not worth it or there was no room. */
  private async keep(frame: ArFrame, manual: boolean, record: (image: EncodedImage) => FrameRecord): Promise<boolean> {
    try {
      const image = await this.encode(await frame.readImage(), frame.view.width, frame.view.height);
      const [warning] = imageWarnings(image.luma, image.sharpness, this.sharpness);
      if (warning !== undefined) this.imageWarning = { warning, until: null };
      if (warning !== undefined && !manual) return false;
      await this.database.addFrame(this.id, record(image), image.jpeg, image.thumbnail);
      this.sharpness.push(image.sharpness);
      this.events.onKept(++this.count);
      if (this.count >= MAX_FRAMES) this.stop('frames');
      return true;
    } catch (error) {
      if (error instanceof StorageFullError) this.stop('storage');
      else console.error('frame lost', error);
      return false;
    }
  }

  private stop(why: 'storage' | 'frames'): void {
    if (this.stopped) return;
    this.stopped = true;
    this.events.onFull(why);
  }
}

/** The cameras' offsets from the object's centre, for the quality summary; none of plain photos. */
export function offsetsOf(records: readonly FrameRecord[], box: Box | null): Vec3[] {
  const center = box?.center ?? ([0, 0, 0] as const);
  return records.flatMap(({ anchor, pose_world }) => {
    if (pose_world === null) return [];
    return [subtract(anchor === null ? pose_world.p : relativeTo(anchor, pose_world).p, center)];
  });
}
