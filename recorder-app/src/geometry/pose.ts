/** Poses as the capture format has them: metres, unit quaternions [x, y, z, w], OpenGL camera axes, right-handed. */

export type Vec3 = readonly [number, number, number];
export type Quaternion = readonly [number, number, number, number];

/** `p` is the origin and `q` the rotation of a frame, both taking its coordinates to the outer frame. */
export interface Pose {
  readonly p: Vec3;
  readonly q: Quaternion;
}

export const IDENTITY: Pose = { p: [0, 0, 0], q: [0, 0, 0, 1] };

/** Hamilton product a ⊗ b: first the rotation b, then a. */
export function multiply(a: Quaternion, b: Quaternion): Quaternion {
  const [ax, ay, az, aw] = a;
  const [bx, by, bz, bw] = b;
  return [
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
    aw * bw - ax * bx - ay * by - az * bz,
  ];
}

/** The inverse of a unit quaternion. */
export function conjugate([x, y, z, w]: Quaternion): Quaternion {
  return [-x, -y, -z, w];
}

export function rotate(q: Quaternion, v: Vec3): Vec3 {
  const [x, y, z] = multiply(multiply(q, [...v, 0]), conjugate(q));
  return [x, y, z];
}

/** Coordinates in the outer frame of the point `v` of the pose's own frame. */
export function transform(pose: Pose, v: Vec3): Vec3 {
  return add(pose.p, rotate(pose.q, v));
}

/** The pose relative to the reference, both given in one world frame: p' = R(q_ref)ᵀ (p − p_ref), q' = q̄_ref ⊗ q. */
export function relativeTo(reference: Pose, pose: Pose): Pose {
  const inverse = conjugate(reference.q);
  return { p: rotate(inverse, subtract(pose.p, reference.p)), q: multiply(inverse, pose.q) };
}

/** Rotation of a column-major 4×4 rigid transform (as WebXR and WebGL have them), and its translation. */
export function poseFromMatrix(m: ArrayLike<number>): Pose {
  const at = (row: number, column: number): number => m[4 * column + row] ?? Number.NaN;
  // Four times the squares of the quaternion's parts; dividing by the largest loses no digits (Shepperd 1978).
  const trace = at(0, 0) + at(1, 1) + at(2, 2);
  const squares = [1 + 2 * at(0, 0) - trace, 1 + 2 * at(1, 1) - trace, 1 + 2 * at(2, 2) - trace, 1 + trace];
  const largest = squares.indexOf(Math.max(...squares));
  const sums = [
    [squares[0]!, at(0, 1) + at(1, 0), at(0, 2) + at(2, 0), at(2, 1) - at(1, 2)],
    [at(0, 1) + at(1, 0), squares[1]!, at(1, 2) + at(2, 1), at(0, 2) - at(2, 0)],
    [at(0, 2) + at(2, 0), at(1, 2) + at(2, 1), squares[2]!, at(1, 0) - at(0, 1)],
    [at(2, 1) - at(1, 2), at(0, 2) - at(2, 0), at(1, 0) - at(0, 1), squares[3]!],
  ][largest] as [number, number, number, number];
  return { p: [at(0, 3), at(1, 3), at(2, 3)], q: normalise(sums) };
}

export function normalise(q: Quaternion): Quaternion {
  const norm = Math.hypot(...q);
  return [q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm];
}

/** The angle between two orientations, radians, 0..π. */
export function angleBetween(a: Quaternion, b: Quaternion): number {
  const [x, y, z, w] = multiply(conjugate(a), b);
  return 2 * Math.atan2(Math.hypot(x, y, z), Math.abs(w));
}

export function add(a: Vec3, b: Vec3): Vec3 {
  return [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
}

export function subtract(a: Vec3, b: Vec3): Vec3 {
  return [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
}

export function distance(a: Vec3, b: Vec3): number {
  return Math.hypot(...subtract(a, b));
}

/** The angle between two directions of any length, radians. */
export function angleOf(a: Vec3, b: Vec3): number {
  const cross = Math.hypot(a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]);
  return Math.atan2(cross, a[0] * b[0] + a[1] * b[1] + a[2] * b[2]);
}
