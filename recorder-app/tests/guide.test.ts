import { describe, expect, it } from 'vitest';
import { flipRows, measure } from '../src/capture/pixels';
import type { Vec3 } from '../src/geometry/pose';
import { BINS, binOf, directionOf, Dome, RINGS } from '../src/guide/coverage';
import {
  blocksShutter,
  distanceToBox,
  imageWarnings,
  isInView,
  isWorldCorrection,
  motionBetween,
  poseWarnings,
  type Box,
} from '../src/guide/gates';
import { isDue, MIN_INTERVAL_S } from '../src/guide/keyframe';
import { assess } from '../src/guide/quality';

function onSphere(azimuthDeg: number, elevationDeg: number, radius = 0.8): Vec3 {
  const [a, e] = [(azimuthDeg * Math.PI) / 180, (elevationDeg * Math.PI) / 180];
  return [radius * Math.cos(e) * Math.sin(a), radius * Math.sin(e), radius * Math.cos(e) * Math.cos(a)];
}

describe('the dome', () => {
  it('has one bin for each direction and each bin has directions', () => {
    const bins = new Set<number>();
    for (const elevation of [10, 35, 70]) {
      for (let azimuth = 5; azimuth < 360; azimuth += 10) bins.add(binOf(onSphere(azimuth, elevation)));
    }
    expect([...bins].sort((a, b) => a - b)).toEqual(Array.from({ length: RINGS * BINS }, (_, i) => i));
  });

  it('forgets a photo that is deleted', () => {
    const dome = new Dome();
    const view = onSphere(45, 30);
    dome.add(view);
    dome.add(view);
    dome.remove(view);
    expect(dome.has(view)).toBe(true);
    dome.remove(view);
    dome.remove(view);
    expect([dome.has(view), dome.filled(), dome.filled(1)]).toEqual([false, 0, 0]);
  });

  it('puts azimuth 0 towards +Z and grows towards +X', () => {
    expect(directionOf([0, 0, 1]).azimuth).toBeCloseTo(0);
    expect(directionOf([1, 0, 0]).azimuth).toBeCloseTo(90);
    expect(directionOf([0, 1, 1]).elevation).toBeCloseTo(45);
  });
});

describe('the automatic shutter', () => {
  const walk = (stepDeg: number): number => {
    const dome = new Dome();
    let last = null;
    let taken = 0;
    for (let azimuth = 0; azimuth < 360; azimuth += stepDeg) {
      const now = { offset: onSphere(azimuth, 10), time: azimuth };
      if (!isDue(now, last, dome)) continue;
      dome.add(now.offset);
      last = now;
      taken++;
    }
    return taken;
  };

  it('takes a photo for each bin of a slow round', () => expect(walk(0.5)).toBe(36));

  it('waits between two photos however fast the phone moves', () => {
    const last = { offset: onSphere(0, 10), time: 5 };
    const now = { offset: onSphere(90, 10), time: 5 + MIN_INTERVAL_S / 2 };
    expect(isDue(now, last, new Dome())).toBe(false);
    expect(isDue({ ...now, time: 6 }, last, new Dome())).toBe(true);
  });

  it('takes a photo again of a side that was seen, after 10°, but not before', () => {
    const dome = new Dome();
    for (let azimuth = 0; azimuth < 360; azimuth += 5) dome.add(onSphere(azimuth, 10));
    const last = { offset: onSphere(0, 10), time: 0 };
    expect(isDue({ offset: onSphere(9, 10), time: 1 }, last, dome)).toBe(false);
    expect(isDue({ offset: onSphere(10.5, 10), time: 1 }, last, dome)).toBe(true);
  });
});

describe('the gates', () => {
  const box: Box = { center: [0, 0, 0], size: [0.2, 0.2, 0.2] };
  const view = { intrinsics: { fx: 500, fy: 500, cx: 240, cy: 320 }, width: 480, height: 640 };
  const still = { linear: 0, angular: 0 };
  const camera = { p: [0, 0, 1] as const, q: [0, 0, 0, 1] as const };

  it('let a calm, sharp view through', () => expect(poseWarnings('normal', camera, view, box, still)).toEqual([]));
  it('stop at lost tracking', () => expect(poseWarnings('lost', null, view, box, still)).toEqual(['lost']));
  it('name each reason', () => {
    const close = { p: [0.4, 0, 0.3] as const, q: camera.q };
    const fast = { linear: 1, angular: 0 };
    expect(poseWarnings('limited', close, view, box, fast)).toEqual([
      'limited',
      'out-of-view',
      'too-fast',
      'too-close',
    ]);
  });
  it('take soft photos, but no blurred ones', () => {
    expect([blocksShutter(['too-close']), blocksShutter(['too-close', 'too-fast'])]).toEqual([false, true]);
  });
  it('see the object behind the camera as out of view', () => {
    expect(isInView({ p: [0, 0, -1], q: [0, 0, 0, 1] }, view.intrinsics, 480, 640, box)).toBe(false);
  });
  it('measure speed', () => {
    const turned = { p: [0, 0.3, 1] as const, q: [Math.sin(0.1), 0, 0, Math.cos(0.1)] as const };
    const { linear, angular } = motionBetween(camera, turned, 0.5);
    expect([linear, angular]).toEqual([expect.closeTo(0.6), expect.closeTo(0.4)]);
    expect(motionBetween(camera, turned, 0)).toEqual(still);
  });
  it('measure the way to a box', () => {
    expect(distanceToBox([0.4, 0, 0.5], box)).toBeCloseTo(0.5); // 0.3 and 0.4 from its edge
    expect(distanceToBox([0.05, 0, 0], box)).toBe(0);
  });
  it('notice corrections of the world', () => {
    expect(isWorldCorrection(camera, { ...camera, p: [0, 0, 1.001] })).toBe(false);
    expect(isWorldCorrection(camera, { ...camera, p: [0, 0.05, 1] })).toBe(true);
  });
  it('compare sharpness with the photos before', () => {
    expect(imageWarnings(120, 20, [100, 110, 90])).toEqual(['blurred']);
    expect(imageWarnings(120, 20, [100, 110])).toEqual([]); // too few to tell
    expect(imageWarnings(10, 100, [100, 110, 90])).toEqual(['too-dark']);
  });
});

describe('pixels', () => {
  const [width, height] = [64, 48];
  const image = (value: (x: number, y: number) => number): Uint8Array => {
    const rgba = new Uint8Array(4 * width * height).fill(255);
    for (let i = 0; i < width * height; i++) rgba.fill(value(i % width, Math.floor(i / width)), 4 * i, 4 * i + 3);
    return rgba;
  };

  it('measure a flat grey and a ramp as without detail', () => {
    const flat = measure(
      image(() => 77),
      width,
      height,
    );
    expect(flat.luma).toBeCloseTo(77, 3);
    expect(flat.sharpness).toBeCloseTo(0, 5);
    const ramp = measure(
      image((x) => 2 * x),
      width,
      height,
    );
    expect(ramp.sharpness).toBeCloseTo(0, 5); // the Laplacian of a plane is 0
  });
  it('measure a checkerboard as the formula says', () => {
    // Every Laplacian is ±4 · 100, so their variance is 400² where both signs are as frequent.
    const board = image((x, y) => ((x / 4 + y / 4) % 2 === 0 ? 50 : 150));
    expect(measure(board, width, height).sharpness).toBeCloseTo(160_000, -1);
  });
  it('turn rows round', () => {
    const rows = image((_, y) => y);
    const flipped = flipRows(rows, width, height);
    expect([flipped[0], flipped.at(-4)]).toEqual([height - 1, 0]);
    expect(flipRows(new Uint8Array(flipped), width, height)).toEqual(new Uint8ClampedArray(rows));
  });
});

describe('the quality summary', () => {
  const round = (elevation: number, count: number, arc = 360): Vec3[] =>
    Array.from({ length: count }, (_, i) => onSphere((i * arc) / count, elevation));

  it('likes three rounds', () => {
    expect(assess([...round(10, 24), ...round(40, 24), ...round(65, 24)])).toMatchObject({
      verdict: 'good',
      findings: [],
    });
  });
  it.each([
    ['nothing', [], ['too-few', 'one-side', 'one-height']],
    ['one height', round(10, 40), ['one-height']],
    ['one side', round(10, 40, 50), ['one-side', 'one-height']],
    ['half a round', [...round(10, 20, 180), ...round(50, 20, 180)], ['gap']],
    ['few', [...round(10, 10), ...round(50, 10)], ['few-views']],
  ])('says what is missing of %s', (_, offsets, findings) => expect(assess(offsets).findings).toEqual(findings));
});
