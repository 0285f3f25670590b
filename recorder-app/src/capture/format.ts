/** The capture bundle (docs/capture-format.md): its types, and how a recording becomes its two documents. */
import packageJson from '../../package.json' with { type: 'json' };
import type { Intrinsics } from '../geometry/camera';
import type { Pose } from '../geometry/pose';
import type { Box, Tracking } from '../guide/gates';

export interface TrackedAnchor extends Pose {
  readonly id: string;
  readonly tracked: boolean;
}

export interface Anchor {
  readonly id: string;
  readonly role: 'object' | 'support';
  readonly pose_first: Pose;
  readonly pose_last: Pose;
}

/** One line of frames.jsonl. */
export interface FrameRecord {
  readonly i: number;
  readonly file: string;
  readonly t: number;
  readonly width: number;
  readonly height: number;
  /** Unknown (null) in plain photos, as is the pose. */
  readonly intrinsics: Intrinsics | null;
  readonly pose_world: Pose | null;
  /** The object's anchor of the pass. */
  readonly anchor: TrackedAnchor | null;
  readonly support?: readonly TrackedAnchor[];
  readonly tracking: Tracking;
  readonly sharpness: number | null;
  readonly luma: number | null;
  readonly angular_velocity: number | null;
  readonly linear_velocity: number | null;
}

export interface BundleFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
}

/** What is known of a capture besides its frames and files. */
export interface CaptureHeader {
  readonly capture_id: string;
  readonly name: string;
  readonly recorded_at: string;
  readonly device: { readonly model: string; readonly platform: string; readonly tracker: string };
  readonly reference_anchor: string | null;
  readonly anchors: readonly Anchor[];
  readonly object: Box | null;
  readonly scale: { readonly metric: boolean; readonly source: string };
  readonly camera: { readonly focus: 'auto' | 'fixed' | null; readonly exposure_locked: boolean | null } | null;
}

export const APP = { name: 'scan2twin recorder', version: packageJson.version };
export const FRAMES_FILE = 'frames.jsonl';
/** The object's anchors: where it stands, whose frame is the model's; and where it stands after it was turned over. */
export const REFERENCE_ANCHOR = 'object';
export const TURNED_ANCHOR = 'object-2';
const CONVENTIONS = {
  pose: 'camera_to_reference',
  camera_axes: 'opengl',
  up: '+Y',
  units: 'm',
  quaternion: 'xyzw',
  pixel_origin: 'top_left_corner',
} as const;

export type CaptureDocument = ReturnType<typeof captureDocument>;

/** capture.json. `files` are all files of the bundle but this one. */
export function captureDocument(header: CaptureHeader, frames: readonly FrameRecord[], files: readonly BundleFile[]) {
  const isTurned = header.anchors.some(({ id, role }) => role === 'object' && id !== header.reference_anchor);
  const isNewer = isTurned || frames.some((frame) => frame.support !== undefined || frame.pose_world === null);
  const version: '1.0' | '1.1' = isNewer ? '1.1' : '1.0';
  return {
    schema: 'scan2twin.capture',
    version,
    ...header,
    app: APP,
    conventions: CONVENTIONS,
    frame_count: frames.length,
    files,
  };
}

/** frames.jsonl: times count from the first frame that is left. */
export function framesJsonl(frames: readonly FrameRecord[]): Uint8Array<ArrayBuffer> {
  const start = frames[0]?.t ?? 0;
  const lines = frames.map((frame) => JSON.stringify({ ...frame, t: frame.t - start }) + '\n');
  return new TextEncoder().encode(lines.join(''));
}

/** The image's name in the bundle. */
export function imageName(i: number): string {
  return `images/${i.toString().padStart(6, '0')}.jpg`;
}

/** An id that no other phone makes: the day and 40 random bits. */
export function newCaptureId(now: Date, random: Uint8Array = crypto.getRandomValues(new Uint8Array(5))): string {
  const bits = Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return `scan-${now.toISOString().slice(0, 10).replaceAll('-', '')}-${bits}`;
}

export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
