import { glMatrix, mat4, quat, vec3, vec4 } from 'gl-matrix';
import { describe, expect, it } from 'vitest';
import { intrinsicsFromProjection, project } from '../src/geometry/camera';
import { angleBetween, multiply, poseFromMatrix, relativeTo, rotate, transform, type Pose } from '../src/geometry/pose';

glMatrix.setMatrixArrayType(Array); // 64-bit floats

/** A repeatable stream of numbers in 0..1 (Park and Miller 1988). */
function stream(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

function randomPose(next: () => number): Pose {
  const part = (): number => next() * 2 - 1;
  const q = quat.normalize(quat.create(), quat.fromValues(part(), part(), part(), part()));
  return { p: [part(), part(), part()], q: [q[0], q[1], q[2], q[3]] };
}

function matrixOf({ p, q }: Pose): mat4 {
  return mat4.fromRotationTranslation(mat4.create(), [...q] as quat, [...p] as vec3);
}

const poses = Array.from({ length: 50 }, (_, i) => randomPose(stream(i + 1)));

describe('poses, against gl-matrix', () => {
  it.each(poses.slice(1).map((pose, i) => [pose, poses[i]!]))('agree (%#)', (a, b) => {
    const v: [number, number, number] = [0.3, -1.2, 2.5];
    const expected = vec3.transformMat4(vec3.create(), v, matrixOf(a));
    expect(distanceOf(transform(a, v), expected)).toBeLessThan(1e-12);
    const relative = mat4.multiply(mat4.create(), mat4.invert(mat4.create(), matrixOf(a))!, matrixOf(b));
    const ours = matrixOf(relativeTo(a, b));
    expect(Math.max(...Array.from(ours, (value, i) => Math.abs(value - relative[i]!)))).toBeLessThan(1e-12);
    expect(distanceOf(rotate(multiply(a.q, b.q), v), rotate(a.q, rotate(b.q, v)))).toBeLessThan(1e-12);
  });

  it.each(poses)('survive the way through a matrix (%#)', (pose) => {
    const back = poseFromMatrix(matrixOf(pose));
    expect(angleBetween(back.q, pose.q)).toBeLessThan(1e-6);
    expect(distanceOf(back.p, pose.p)).toBeLessThan(1e-6);
  });

  it.each([
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 0, 1],
  ] as const)('finds half turns too: %f %f %f %f', (...q) => {
    expect(angleBetween(poseFromMatrix(matrixOf({ p: [0, 0, 0], q })).q, q)).toBeLessThan(1e-6);
  });

  it('relative to an anchor does not change when the world frame does', () => {
    const next = stream(99);
    for (let i = 0; i < 20; i++) {
      const [anchor, camera, correction] = [randomPose(next), randomPose(next), randomPose(next)];
      const moved = (pose: Pose): Pose => ({
        p: transform(correction, pose.p),
        q: multiply(correction.q, pose.q),
      });
      const before = relativeTo(anchor, camera);
      const after = relativeTo(moved(anchor), moved(camera));
      expect(distanceOf(before.p, after.p)).toBeLessThan(1e-9);
      expect(angleBetween(before.q, after.q)).toBeLessThan(1e-6);
    }
  });
});

describe('intrinsics', () => {
  it('put a point where OpenGL puts it, with an off-centre principal point', () => {
    const [width, height] = [480, 640];
    const projection = mat4.perspective(mat4.create(), 1.1, width / height, 0.1, 100);
    projection[8] = 0.06;
    projection[9] = -0.03;
    const next = stream(7);
    for (let i = 0; i < 20; i++) {
      const pose = randomPose(next);
      const eye: [number, number, number] = [next() - 0.5, next() - 0.5, -1 - next()];
      const clip = vec4.transformMat4(vec4.create(), [...eye, 1], projection);
      const expected = [(width / 2) * (1 + clip[0] / clip[3]), (height / 2) * (1 - clip[1] / clip[3])];
      const found = project(pose, intrinsicsFromProjection(projection, width, height), transform(pose, eye));
      expect(Math.hypot(found![0] - expected[0]!, found![1] - expected[1]!)).toBeLessThan(1e-9);
    }
  });

  it('show nothing behind the camera', () => {
    expect(project({ p: [0, 0, 0], q: [0, 0, 0, 1] }, { fx: 1, fy: 1, cx: 0, cy: 0 }, [0, 0, 1])).toBeNull();
  });
});

function distanceOf(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return Math.hypot(a[0]! - b[0]!, a[1]! - b[1]!, a[2]! - b[2]!);
}
