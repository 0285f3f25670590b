import { project, type Intrinsics } from '../geometry/camera';
import { angleBetween, distance, type Pose, type Vec3 } from '../geometry/pose';

export const MAX_ANGULAR_VELOCITY = 1.0; // rad/s: above, a phone's 1/60 s exposure smears by over 15 pixels
export const MAX_LINEAR_VELOCITY = 0.6; // m/s: a slow walk
export const MIN_DISTANCE_M = 0.5; // the focus is fixed in AR: closer objects get soft
export const MIN_LUMA = 45; // of 255, mean of the image: below, noise hides texture
export const MIN_RELATIVE_SHARPNESS = 0.4; // of the median of its neighbours
const NEIGHBOURS = 8;
/** A correction of the world frame that people notice: the anchor moved by this much between two frames. */
export const CORRECTION_M = 0.02;
export const CORRECTION_RAD = (1 * Math.PI) / 180;

export type Tracking = 'normal' | 'limited' | 'lost';
export type Warning = 'lost' | 'limited' | 'out-of-view' | 'too-fast' | 'too-close' | 'too-dark' | 'blurred';

/** A box aligned with its frame's axes, metres. */
export interface Box {
  readonly center: Vec3;
  readonly size: Vec3;
}

export interface Motion {
  readonly linear: number; // m/s
  readonly angular: number; // rad/s
}

/** Speed between two poses of one frame of reference, `seconds` apart. */
export function motionBetween(before: Pose, after: Pose, seconds: number): Motion {
  if (seconds <= 0) return { linear: 0, angular: 0 };
  return { linear: distance(before.p, after.p) / seconds, angular: angleBetween(before.q, after.q) / seconds };
}

export function isWorldCorrection(anchorBefore: Pose, anchorAfter: Pose): boolean {
  return (
    distance(anchorBefore.p, anchorAfter.p) > CORRECTION_M ||
    angleBetween(anchorBefore.q, anchorAfter.q) > CORRECTION_RAD
  );
}

/** Distance from a point to the nearest point of a box, metres; 0 inside. */
export function distanceToBox(point: Vec3, box: Box): number {
  const outside = point.map((x, axis) => Math.max(0, Math.abs(x - box.center[axis]!) - box.size[axis]! / 2));
  return Math.hypot(...outside);
}

/** Tell whether the box's centre lies within the image, away from its margins (a tenth of each side). */
export function isInView(camera: Pose, intrinsics: Intrinsics, width: number, height: number, box: Box): boolean {
  const pixel = project(camera, intrinsics, box.center);
  if (pixel === null) return false;
  const [x, y] = pixel;
  return x > 0.1 * width && x < 0.9 * width && y > 0.1 * height && y < 0.9 * height;
}

/** What keeps a frame from being taken now, worst first; the camera pose and the box are in the anchor's frame. */
export function poseWarnings(
  tracking: Tracking,
  camera: Pose | null,
  view: { intrinsics: Intrinsics; width: number; height: number },
  box: Box,
  motion: Motion,
): Warning[] {
  if (tracking === 'lost' || camera === null) return ['lost'];
  const warnings: Warning[] = [];
  if (tracking === 'limited') warnings.push('limited');
  if (!isInView(camera, view.intrinsics, view.width, view.height, box)) warnings.push('out-of-view');
  if (motion.linear > MAX_LINEAR_VELOCITY || motion.angular > MAX_ANGULAR_VELOCITY) warnings.push('too-fast');
  if (distanceToBox(camera.p, box) < MIN_DISTANCE_M) warnings.push('too-close');
  return warnings;
}

/** Being too close makes a photo soft, not useless: it is warned of, but taken. */
export function blocksShutter(warnings: readonly Warning[]): boolean {
  return warnings.some((warning) => warning !== 'too-close');
}

/** What the pixels say of a frame; `sharpnessBefore` are the frames already kept, in recording order. */
export function imageWarnings(luma: number, sharpness: number, sharpnessBefore: readonly number[]): Warning[] {
  const warnings: Warning[] = [];
  if (luma < MIN_LUMA) warnings.push('too-dark');
  const around = sharpnessBefore.slice(-NEIGHBOURS).sort((a, b) => a - b);
  const median = around[Math.floor(around.length / 2)];
  if (median !== undefined && around.length >= 3 && sharpness < MIN_RELATIVE_SHARPNESS * median) {
    warnings.push('blurred');
  }
  return warnings;
}
