import type { Vec3 } from '../geometry/pose';

/** Rings of the dome by elevation of the camera seen from the object, degrees: from the side, from higher, from above. */
export const RING_LIMITS_DEG = [25, 50] as const;
export const RINGS = RING_LIMITS_DEG.length + 1;
export const BINS = 36; // a ring's bins of azimuth, 10° each
/** Enough for a good model: the maintainers of nvdiffrec ask for 50 well spread views; this leaves some to drop. */
export const TARGET_VIEWS = 72;

/** Azimuth (0 towards +Z, growing towards +X) and elevation, degrees, of a camera at `offset` from the object; +Y is up. */
export function directionOf([x, y, z]: Vec3): { azimuth: number; elevation: number } {
  const degrees = 180 / Math.PI;
  const azimuth = (Math.atan2(x, z) * degrees + 360) % 360;
  return { azimuth, elevation: Math.atan2(y, Math.hypot(x, z)) * degrees };
}

/** The bin (ring · BINS + azimuth bin) of a camera at `offset` from the object's centre. */
export function binOf(offset: Vec3): number {
  const { azimuth, elevation } = directionOf(offset);
  const ring = RING_LIMITS_DEG.filter((limit) => elevation >= limit).length;
  return ring * BINS + (Math.floor((azimuth / 360) * BINS) % BINS);
}

/** Which directions round the object have been photographed: how many frames each bin has. */
export class Dome {
  readonly counts = new Uint16Array(RINGS * BINS);

  add(offset: Vec3): void {
    this.counts[binOf(offset)]! += 1;
  }

  remove(offset: Vec3): void {
    const bin = binOf(offset);
    this.counts[bin] = Math.max(0, this.counts[bin]! - 1);
  }

  has(offset: Vec3): boolean {
    return this.counts[binOf(offset)]! > 0;
  }

  /** Filled bins of one ring, or of all. */
  filled(ring?: number): number {
    const counts = ring === undefined ? this.counts : this.counts.subarray(ring * BINS, (ring + 1) * BINS);
    return counts.reduce((sum, count) => sum + (count > 0 ? 1 : 0), 0);
  }
}
