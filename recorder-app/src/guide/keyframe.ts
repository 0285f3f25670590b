import { angleOf, type Vec3 } from '../geometry/pose';
import type { Dome } from './coverage';

export const NEW_VIEW_RAD = (10 * Math.PI) / 180; // one bin of the dome
export const MIN_INTERVAL_S = 0.3; // a readback and its encoding take a tenth of a second on a phone
export const MAX_FRAMES = 300; // of one capture: 750 MB at 2.5 MB a frame; more views add nothing

export interface Moment {
  /** The camera's offset from the object's centre, in the anchor's frame. */
  readonly offset: Vec3;
  /** Seconds since the session began. */
  readonly time: number;
}

/** Tell whether a view differs enough from those before: a bin without a photo, or 10° from the last photo. */
export function isDue(now: Moment, last: Moment | null, dome: Dome): boolean {
  if (last !== null && now.time - last.time < MIN_INTERVAL_S) return false;
  return last === null || !dome.has(now.offset) || angleOf(now.offset, last.offset) >= NEW_VIEW_RAD;
}
