import { conjugate, rotate, subtract, type Pose, type Vec3 } from './pose';

/** Pinhole intrinsics in pixels; the origin is the image's top-left corner, +y down. */
export interface Intrinsics {
  readonly fx: number;
  readonly fy: number;
  readonly cx: number;
  readonly cy: number;
}

/**
 * Intrinsics of a camera image of `width` × `height` pixels from the view's projection matrix (16, column-major,
 * OpenGL clip space). WebXR Raw Camera Access: the image is aligned with the view, so the one describes the other.
 */
export function intrinsicsFromProjection(projection: ArrayLike<number>, width: number, height: number): Intrinsics {
  const at = (index: number): number => projection[index] ?? Number.NaN;
  return {
    fx: (width / 2) * at(0),
    fy: (height / 2) * at(5),
    cx: (width / 2) * (1 - at(8)),
    cy: (height / 2) * (1 + at(9)),
  };
}

/** Pixel in which a camera at `camera` (to the frame of `point`) sees `point`; null behind the camera. */
export function project(camera: Pose, intrinsics: Intrinsics, point: Vec3): readonly [number, number] | null {
  const [x, y, z] = rotate(conjugate(camera.q), subtract(point, camera.p));
  if (z >= 0) return null; // the camera looks along -Z
  return [intrinsics.cx + (intrinsics.fx * x) / -z, intrinsics.cy - (intrinsics.fy * y) / -z];
}
