/** One recording: decides which frames to take, and keeps them. Knows no WebXR and no screen. */
import {
  imageName,
  newCaptureId,
  REFERENCE_ANCHOR,
  type Anchor,
  type CaptureHeader,
  type FrameRecord,
  type TrackedAnchor,
} from '../capture/format';
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
import type { AnchorPose, ArFrame } from '../xr/session';

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

/** What is photographed of the object while it stands in one way. */
export interface Pass {
  readonly anchor: string; // id of the object's anchor
  readonly box: Box; // in that anchor's frame
  readonly dome: Dome;
  readonly sharpness: number[]; // of the photos kept
  lastShot: Moment | null;
}

export class Recording {
  readonly id = newCaptureId(new Date());
  count = 0;
  paused = false;
  stopped = false;
  private readonly passes: Pass[];
  private next = 0;
  private readonly inWork = new Set<Promise<void>>();
  private before: { readonly time: number; readonly anchor: Pose; readonly camera: Pose } | null = null;
  /** What was wrong with the last image; it is shown from the frame after it is known on. */
  private imageWarning: { readonly warning: Warning; until: number | null } | null = null;
  private manual = false;

  constructor(
    private readonly database: Database,
    private readonly encode: Encode,
    box: Box,
    private readonly events: RecordingEvents,
  ) {
    this.passes = [newPass(REFERENCE_ANCHOR, box)];
  }

  /** How the object stands now. */
  get pass(): Pass {
    return this.passes.at(-1)!;
  }

  get isTurned(): boolean {
    return this.passes.length > 1;
  }

  /** Write the capture's row; frames can be added from then on. */
  async begin(
    name: string,
    device: { model: string; platform: string },
    anchors: readonly AnchorPose[],
    pairing: Pairing | null,
  ): Promise<void> {
    await this.database.putCapture({
      header: {
        capture_id: this.id,
        name,
        recorded_at: new Date().toISOString(),
        device: { ...device, tracker: 'arcore' },
        reference_anchor: REFERENCE_ANCHOR,
        anchors: anchors.map(asPlaced),
        object: this.pass.box,
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

  /** Go on with the object turned over: it stands at `anchor` now, in `box` of that anchor's frame. */
  async turnOver(anchor: AnchorPose, box: Box): Promise<void> {
    await this.changeAnchors((anchors) => [...anchors, asPlaced(anchor)]);
    this.passes.push(newPass(anchor.id, box));
    this.before = null;
    this.manual = false;
  }

  /** Go back to the side before, without the second anchor; false if there is a photo of the second side. */
  async turnBack(): Promise<boolean> {
    this.paused = true; // what is in work may still become a photo of the second side
    await Promise.all(this.inWork);
    const turned = this.pass;
    if (turned.sharpness.length === 0) {
      await this.changeAnchors((anchors) => anchors.filter(({ id }) => id !== turned.anchor));
      this.passes.pop();
      this.before = null;
    }
    this.paused = false;
    return this.pass !== turned;
  }

  /** Take the next good frame whether it is due or not. */
  shoot(): void {
    this.manual = true;
  }

  /** Look at a frame, take it if it is due and good; return what to warn of, worst first. */
  see(frame: ArFrame): Warning[] {
    const { box, dome, lastShot } = this.pass;
    const anchor = this.anchorIn(frame);
    const usable = frame.camera !== null && anchor?.tracked === true;
    const camera = usable ? relativeTo(anchor, frame.camera) : null;
    const motion = this.follow(frame.time, anchor, camera);
    const warnings = poseWarnings(usable ? frame.tracking : 'lost', camera, frame.view, box, motion);
    if (this.imageWarning !== null) {
      this.imageWarning.until ??= frame.time + STICKY_S;
      if (frame.time < this.imageWarning.until) warnings.push(this.imageWarning.warning);
    }
    if (camera === null || this.paused || this.stopped || this.inWork.size >= MAX_IN_WORK) return warnings;
    const now: Moment = { offset: subtract(camera.p, box.center), time: frame.time };
    const good = !blocksShutter(poseWarnings(frame.tracking, camera, frame.view, box, motion));
    if (good && (this.manual || isDue(now, lastShot, dome))) this.take(frame, now, motion, anchor!);
    return warnings;
  }

  /** The anchor of the object as it stands now; null before it is placed. */
  anchorIn(frame: ArFrame): TrackedAnchor | null {
    return frame.objects.find(({ id }) => id === this.pass.anchor) ?? null;
  }

  /** Wait for the frames in work, and write the anchors as they are at the end. */
  async finish(anchorPoses: readonly AnchorPose[]): Promise<void> {
    this.stopped = true;
    await Promise.all(this.inWork);
    if ((await this.database.capture(this.id)) === undefined) return;
    if (this.isTurned) await this.turnBack(); // nothing was photographed of the second side
    await this.changeAnchors((anchors) =>
      anchors.map((anchor) => ({
        ...anchor,
        pose_last: anchorPoses.find(({ id }) => id === anchor.id)?.pose ?? anchor.pose_last,
      })),
    );
    await this.database.updateCapture(this.id, { state: 'review' });
  }

  private async changeAnchors(change: (anchors: readonly Anchor[]) => readonly Anchor[]): Promise<void> {
    const { header } = (await this.database.capture(this.id))!;
    await this.database.updateCapture(this.id, { header: { ...header, anchors: change(header.anchors) } });
  }

  /** Speed since the frame before, relative to the anchor; and whether the tracker has corrected itself. */
  private follow(time: number, anchor: Pose | null, camera: Pose | null): Motion {
    const { before } = this;
    this.before = anchor === null || camera === null ? null : { time, anchor, camera };
    if (before === null || this.before === null) return { linear: 0, angular: 0 };
    if (isWorldCorrection(before.anchor, this.before.anchor)) this.events.onCorrection();
    return motionBetween(before.camera, this.before.camera, time - before.time);
  }

  private take(frame: ArFrame, now: Moment, motion: Motion, anchor: TrackedAnchor): void {
    const { manual, pass } = this;
    this.manual = false;
    const before = pass.lastShot;
    pass.lastShot = now;
    pass.dome.add(now.offset); // at once, so that the bin is not taken twice while the image is in work
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
    const work = this.keep(frame, manual, pass, record).then((kept) => {
      this.inWork.delete(work);
      if (kept) return;
      pass.dome.remove(now.offset);
      if (pass.lastShot === now) pass.lastShot = before;
    });
    this.inWork.add(work);
  }

  /** Read, encode and store a frame; false if it was not worth it or there was no room. */
  private async keep(
    frame: ArFrame,
    manual: boolean,
    pass: Pass,
    record: (image: EncodedImage) => FrameRecord,
  ): Promise<boolean> {
    try {
      const image = await this.encode(await frame.readImage(), frame.view.width, frame.view.height);
      const [warning] = imageWarnings(image.luma, image.sharpness, pass.sharpness);
      if (warning !== undefined) this.imageWarning = { warning, until: null };
      if (warning !== undefined && !manual) return false;
      await this.database.addFrame(this.id, record(image), image.jpeg, image.thumbnail);
      pass.sharpness.push(image.sharpness);
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

function newPass(anchor: string, box: Box): Pass {
  return { anchor, box, dome: new Dome(), sharpness: [], lastShot: null };
}

function asPlaced({ id, role, pose }: AnchorPose): Anchor {
  return { id, role, pose_first: pose, pose_last: pose };
}

/** Tell whether a frame shows the object turned over. */
export function showsTurned({ anchor }: FrameRecord, header: CaptureHeader): boolean {
  return anchor !== null && anchor.id !== header.reference_anchor;
}

/**
 * The cameras' offsets from the object's centre, for the quality summary: of the first side, which is what the
 * pipeline's gate looks at; none of plain photos.
 */
export function offsetsOf(records: readonly FrameRecord[], header: CaptureHeader): Vec3[] {
  const center = header.object?.center ?? ([0, 0, 0] as const);
  return records.flatMap((record) => {
    const { anchor, pose_world } = record;
    if (pose_world === null || showsTurned(record, header)) return [];
    return [subtract(anchor === null ? pose_world.p : relativeTo(anchor, pose_world).p, center)];
  });
}
