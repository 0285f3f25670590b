/** Draws lines and dots over the camera's picture: the reticle, the object's box, the dome of views. */
import { transform, type Pose, type Vec3 } from '../geometry/pose';
import type { Box } from '../guide/gates';
import { BINS, RING_LIMITS_DEG, RINGS, type Dome } from '../guide/coverage';

type Color = readonly [number, number, number];
export const GREEN: Color = [0.2, 0.95, 0.45];
export const WHITE: Color = [1, 1, 1];
const DOT_PIXELS = 14;
const RETICLE_RADIUS_M = 0.06;

const VERTEX = `#version 300 es
in vec3 position; uniform mat4 projection, worldToCamera; uniform float size;
void main() { gl_Position = projection * worldToCamera * vec4(position, 1.); gl_PointSize = size; }`;
const FRAGMENT = `#version 300 es
precision mediump float; uniform vec3 color; out vec4 pixel;
void main() { pixel = vec4(color, 1.); }`;

export class Drawing {
  private readonly program: WebGLProgram;
  private readonly buffer: WebGLBuffer;

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.program = gl.createProgram();
    for (const [type, source] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ] as const) {
      const shader = gl.createShader(type)!;
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.bindAttribLocation(this.program, 0, 'position');
    gl.linkProgram(this.program);
    this.buffer = gl.createBuffer();
  }

  /** Begin a frame; both matrices are column-major. */
  begin(projection: Float32Array, worldToCamera: Float32Array): void {
    const { gl } = this;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.useProgram(this.program);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.program, 'projection'), false, projection);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.program, 'worldToCamera'), false, worldToCamera);
  }

  lines(points: readonly Vec3[], color: Color): void {
    this.draw(this.gl.LINES, points, color, 1);
  }

  dots(points: readonly Vec3[], color: Color, pixels: number): void {
    this.draw(this.gl.POINTS, points, color, pixels);
  }

  private draw(mode: number, points: readonly Vec3[], color: Color, size: number): void {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(points.flat()), gl.STREAM_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
    gl.uniform3f(gl.getUniformLocation(this.program, 'color'), ...color);
    gl.uniform1f(gl.getUniformLocation(this.program, 'size'), size);
    gl.drawArrays(mode, 0, points.length);
  }
}

/** A ring on the floor and a cross in it. */
export function drawReticle(drawing: Drawing, [x, y, z]: Vec3): void {
  const corner = (i: number): Vec3 => {
    const angle = (2 * Math.PI * i) / 32;
    return [x + RETICLE_RADIUS_M * Math.cos(angle), y, z + RETICLE_RADIUS_M * Math.sin(angle)];
  };
  const ring = Array.from({ length: 32 }, (_, i) => [corner(i), corner(i + 1)]).flat();
  drawing.lines([...ring, corner(0), corner(16), corner(8), corner(24)], WHITE);
}

/** The edges of a box given in the anchor's frame. */
export function drawBox(drawing: Drawing, anchor: Pose, { center, size }: Box): void {
  const corner = (bits: number): Vec3 =>
    transform(
      anchor,
      [0, 1, 2].map((axis) => center[axis]! + ((bits >> axis) & 1 ? 0.5 : -0.5) * size[axis]!) as never,
    );
  const edges: Vec3[] = [];
  for (let from = 0; from < 8; from++) {
    for (const axis of [1, 2, 4]) if ((from & axis) === 0) edges.push(corner(from), corner(from | axis));
  }
  drawing.lines(edges, GREEN);
}

/** A dot for each direction round the object: green where there is a photo. */
export function drawDome(drawing: Drawing, anchor: Pose, box: Box, dome: Dome): void {
  const radius = 0.75 * Math.hypot(...box.size);
  const [taken, open]: [Vec3[], Vec3[]] = [[], []];
  const limits = [0, ...RING_LIMITS_DEG, 80];
  for (let bin = 0; bin < RINGS * BINS; bin++) {
    const ring = Math.floor(bin / BINS);
    const elevation = ((limits[ring]! + limits[ring + 1]!) / 2) * (Math.PI / 180);
    const azimuth = (2 * Math.PI * ((bin % BINS) + 0.5)) / BINS;
    const offset: Vec3 = [
      box.center[0] + radius * Math.cos(elevation) * Math.sin(azimuth),
      box.center[1] + radius * Math.sin(elevation),
      box.center[2] + radius * Math.cos(elevation) * Math.cos(azimuth),
    ];
    (dome.counts[bin]! > 0 ? taken : open).push(transform(anchor, offset));
  }
  drawing.dots(open, WHITE, DOT_PIXELS / 3);
  drawing.dots(taken, GREEN, DOT_PIXELS);
}
