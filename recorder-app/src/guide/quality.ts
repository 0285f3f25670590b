/** What the pipeline's gate will say of the views (preprocessing/quality.py has the same rules and limits). */
import type { Vec3 } from '../geometry/pose';
import { directionOf } from './coverage';

export const MIN_FRAMES = 8; // validate.min_frames
export const GOOD_VIEWS = 30;
export const WARN_GAP_DEG = 60; // mask.warn_gap_deg
export const REFUSE_GAP_DEG = 300; // mask.refuse_gap_deg
export const MIN_ELEVATION_SPREAD_DEG = 15;

/** `verdict` bad: the pipeline would refuse it. `findings` are keys of the texts, worst first. */
export interface Quality {
  readonly verdict: 'good' | 'fair' | 'bad';
  readonly views: number;
  readonly largestGapDeg: number;
  readonly elevationSpreadDeg: number;
  readonly findings: readonly Finding[];
}
export type Finding = 'too-few' | 'one-side' | 'gap' | 'one-height' | 'few-views';

/** Judge plain photos: where they were taken from is not known before the pipeline has looked at them. */
export function assessPhotos(count: number): Quality {
  const findings: Finding[] = count < MIN_FRAMES ? ['too-few'] : count < GOOD_VIEWS ? ['few-views'] : [];
  const verdict = count < MIN_FRAMES ? 'bad' : count < GOOD_VIEWS ? 'fair' : 'good';
  return { verdict, views: count, largestGapDeg: Number.NaN, elevationSpreadDeg: Number.NaN, findings };
}

/** Judge a capture by its cameras' offsets from the object's centre, in the anchor's frame. */
export function assess(offsets: readonly Vec3[]): Quality {
  const directions = offsets.map(directionOf);
  const azimuths = directions.map(({ azimuth }) => azimuth).sort((a, b) => a - b);
  const gaps = azimuths.map(
    (azimuth, i) => (i + 1 < azimuths.length ? azimuths[i + 1]! : azimuths[0]! + 360) - azimuth,
  );
  const elevations = directions.map(({ elevation }) => elevation);
  const largestGapDeg = offsets.length === 0 ? 360 : Math.max(...gaps);
  const elevationSpreadDeg = offsets.length === 0 ? 0 : Math.max(...elevations) - Math.min(...elevations);
  const findings: Finding[] = [];
  if (offsets.length < MIN_FRAMES) findings.push('too-few');
  if (largestGapDeg > REFUSE_GAP_DEG) findings.push('one-side');
  else if (largestGapDeg > WARN_GAP_DEG) findings.push('gap');
  if (elevationSpreadDeg < MIN_ELEVATION_SPREAD_DEG) findings.push('one-height');
  if (offsets.length < GOOD_VIEWS && offsets.length >= MIN_FRAMES) findings.push('few-views');
  const refused = findings.includes('too-few') || findings.includes('one-side');
  return {
    verdict: refused ? 'bad' : findings.length > 0 ? 'fair' : 'good',
    views: offsets.length,
    largestGapDeg,
    elevationSpreadDeg,
    findings,
  };
}
