/** The emulated phone's surroundings: a concrete floor, a cast part on it, and markers at known places. */
import { mat4 } from 'gl-matrix';

type Vec3 = readonly [number, number, number];

/** Balls of 4 cm at places (metres, floor at y = 0) and in colours that nothing else has. */
export const MARKERS: readonly { readonly at: Vec3; readonly color: Vec3 }[] = [
  { at: [-0.045, 0.26, 0], color: [1, 0, 0] },
  { at: [0.19, 0.02, 0.15], color: [0, 1, 0] },
  { at: [-0.19, 0.02, 0.14], color: [0, 0, 1] },
  { at: [0.03, 0.02, -0.2], color: [1, 0, 1] },
];
const MARKER_RADIUS = 0.02;
/** Height of the part with the first marker on its top: the part turned over stands on that. */
const TOP = 0.28;

const VERTEX = `#version 300 es
in vec3 position, normal; uniform mat4 clipFromWorld; uniform vec3 offset, scale; uniform bool turned;
out vec3 own, ownNormal, n;
void main() {
  own = position * scale + offset; ownNormal = n = normal;
  vec3 world = own;
  if (turned) { world = vec3(own.x, ${TOP} - own.y, -own.z); n = normal * vec3(1., -1., -1.); }
  gl_Position = clipFromWorld * vec4(world, 1.);
}`;
const FRAGMENT = `#version 300 es
precision highp float; in vec3 own, ownNormal, n; uniform vec3 color; uniform int kind; uniform float light, noise; uniform sampler2D grain;
out vec4 pixel;
void main() {
  vec3 c = color;
  vec2 face = abs(ownNormal.y) > .6 ? own.xz : abs(ownNormal.x) > .6 ? own.zy : own.xy;
  if (kind == 1) {
    float joint = smoothstep(.0, .012, min(abs(fract(own.x / .6 + .31) - .5), abs(fract(own.z / .6 + .17) - .5)));
    float shade = smoothstep(.0, .16, length(max(abs(own.xz) - vec2(.11, .08), 0.)));
    c = (.42 + .3 * texture(grain, face).r) * vec3(1., .98, .95) * mix(.75, 1., joint) * mix(.55, 1., shade);
  }
  if (kind == 2) {
    float sun = .45 + .55 * max(0., dot(normalize(n), normalize(vec3(.4, .8, .3))));
    c = color * (.35 + .9 * texture(grain, 2.3 * face).r) * sun;
  }
  float random = fract(sin(dot(gl_FragCoord.xy, vec2(12.9898, 78.233))) * 43758.5453);
  pixel = vec4(c * light + noise * (random - .5), 1.);
}`;
const GRAIN = 512; // pixels of the square that is repeated over a metre

/** Blobs of three sizes, so that there is something to see from every distance. */
function grainPixels(): Uint8Array {
  let state = 1;
  const random = (): number => (state = (state * 16807) % 2147483647) / 2147483647; // Park and Miller 1988
  const sum = new Float32Array(GRAIN * GRAIN);
  for (const [cells, weight] of [
    [28, 0.5],
    [76, 0.3],
    [171, 0.2],
  ] as const) {
    const values = Float32Array.from({ length: cells * cells }, random);
    const at = (x: number, y: number): number => values[(y % cells) * cells + (x % cells)]!;
    for (let i = 0; i < sum.length; i++) {
      const [x, y] = [((i % GRAIN) * cells) / GRAIN, (Math.floor(i / GRAIN) * cells) / GRAIN];
      const [column, row] = [Math.floor(x), Math.floor(y)];
      const [u, v] = [x - column, y - row];
      const upper = at(column, row) * (1 - u) + at(column + 1, row) * u;
      sum[i]! += weight * (upper * (1 - v) + (at(column, row + 1) * (1 - u) + at(column + 1, row + 1) * u) * v);
    }
  }
  return Uint8Array.from(sum, (value) => 255 * value);
}

/** The part: a cast base with a turned tower, a shaft and four bolts. Cylinders lie along an axis. */
const PART: readonly {
  readonly along: 'box' | 'x' | 'y';
  readonly at: Vec3;
  readonly size: Vec3;
  readonly color: Vec3;
}[] = [
  { along: 'box', at: [0, 0.06, 0], size: [0.22, 0.12, 0.16], color: [0.86, 0.42, 0.12] },
  { along: 'y', at: [-0.045, 0.18, 0], size: [0.11, 0.12, 0.11], color: [0.9, 0.5, 0.15] },
  { along: 'x', at: [0.13, 0.06, 0], size: [0.05, 0.07, 0.07], color: [0.75, 0.72, 0.66] },
  ...[-0.085, 0.085].flatMap((x) =>
    [-0.058, 0.058].map((z) => ({
      along: 'y' as const,
      at: [x, 0.125, z] as const,
      size: [0.026, 0.016, 0.026] as const,
      color: [0.7, 0.72, 0.75] as const,
    })),
  ),
];

interface Shape {
  readonly vertices: WebGLVertexArrayObject;
  readonly count: number;
}

export class Scene {
  /** 1 in good light. */
  light = 1;
  /** Of a sensor, as a share of white, from side to side: it makes photos as large as those of a phone. */
  noise = 0;
  /** Whether the part lies upside down. */
  turned = false;
  private readonly program: WebGLProgram;
  private readonly grain: WebGLTexture;
  private readonly shapes: Record<'box' | 'x' | 'y', Shape>;
  private readonly ball: Shape;
  private target: { framebuffer: WebGLFramebuffer; texture: WebGLTexture; width: number; height: number } | null = null;

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.program = gl.createProgram();
    this.grain = gl.createTexture();
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
    gl.bindAttribLocation(this.program, 1, 'normal');
    gl.linkProgram(this.program);
    gl.bindTexture(gl.TEXTURE_2D, this.grain);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, GRAIN, GRAIN, 0, gl.RED, gl.UNSIGNED_BYTE, grainPixels());
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.bindTexture(gl.TEXTURE_2D, null);
    this.shapes = {
      box: this.shape(cubeVertices()),
      x: this.shape(cylinderVertices(0)),
      y: this.shape(cylinderVertices(1)),
    };
    this.ball = this.shape(ballVertices());
  }

  /** Draw what a camera at `cameraToWorld` sees into the bound framebuffer. */
  draw(cameraToWorld: mat4, projection: mat4, width: number, height: number): void {
    const { gl } = this;
    const clipFromWorld = mat4.multiply(mat4.create(), projection, mat4.invert(mat4.create(), cameraToWorld)!);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0.55 * this.light, 0.65 * this.light, 0.75 * this.light, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.bindTexture(gl.TEXTURE_2D, this.grain);
    gl.uniformMatrix4fv(this.uniform('clipFromWorld'), false, clipFromWorld);
    gl.uniform1f(this.uniform('light'), this.light);
    gl.uniform1f(this.uniform('noise'), this.noise);
    this.put(this.shapes.box, 1, [0, -0.01, 0], [6, 0.02, 6], [0, 0, 0]);
    for (const { along, at, size, color } of PART) this.put(this.shapes[along], 2, at, size, color, this.turned);
    for (const [i, { at, color }] of MARKERS.entries()) {
      const isOnPart = i === 0;
      this.put(this.ball, 0, at, [MARKER_RADIUS, MARKER_RADIUS, MARKER_RADIUS], color, this.turned && isOnPart);
    }
    gl.bindVertexArray(null);
    gl.bindTexture(gl.TEXTURE_2D, null);
    gl.disable(gl.DEPTH_TEST);
  }

  /** The camera's image as a texture of its own. */
  image(cameraToWorld: mat4, projection: mat4, width: number, height: number): WebGLTexture {
    const { gl } = this;
    const before = gl.getParameter(gl.FRAMEBUFFER_BINDING) as WebGLFramebuffer | null;
    if (this.target?.width !== width || this.target.height !== height) this.target = this.makeTarget(width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target.framebuffer);
    this.draw(cameraToWorld, projection, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, before);
    return this.target.texture;
  }

  private put(shape: Shape, kind: number, offset: Vec3, scale: Vec3, color: Vec3, turned = false): void {
    const { gl } = this;
    gl.bindVertexArray(shape.vertices);
    gl.uniform1i(this.uniform('kind'), kind);
    gl.uniform1i(this.uniform('turned'), Number(turned));
    gl.uniform3f(this.uniform('offset'), ...offset);
    gl.uniform3f(this.uniform('scale'), ...scale);
    gl.uniform3f(this.uniform('color'), ...color);
    gl.drawArrays(gl.TRIANGLES, 0, shape.count);
  }

  private uniform(name: string): WebGLUniformLocation | null {
    return this.gl.getUniformLocation(this.program, name);
  }

  private shape(vertices: number[]): Shape {
    const { gl } = this;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(vertices), gl.STATIC_DRAW);
    for (const [index, offset] of [
      [0, 0],
      [1, 12],
    ] as const) {
      gl.enableVertexAttribArray(index);
      gl.vertexAttribPointer(index, 3, gl.FLOAT, false, 24, offset);
    }
    gl.bindVertexArray(null);
    return { vertices: array, count: vertices.length / 6 };
  }

  private makeTarget(width: number, height: number) {
    const { gl } = this;
    const [framebuffer, texture, depth] = [gl.createFramebuffer(), gl.createTexture(), gl.createRenderbuffer()];
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
    gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, depth);
    return { framebuffer, texture, width, height };
  }
}

/** Positions (a unit cube) and normals, six numbers a vertex. */
function cubeVertices(): number[] {
  const vertices: number[] = [];
  for (const axis of [0, 1, 2]) {
    for (const side of [-1, 1]) {
      for (const [u, v] of [
        [-1, -1],
        [1, -1],
        [1, 1],
        [-1, -1],
        [1, 1],
        [-1, 1],
      ] as const) {
        const [position, normal] = [
          [0, 0, 0],
          [0, 0, 0],
        ];
        position[axis] = side / 2;
        position[(axis + 1) % 3] = u / 2;
        position[(axis + 2) % 3] = v / 2;
        normal[axis] = side;
        vertices.push(...position, ...normal);
      }
    }
  }
  return vertices;
}

/** A cylinder of unit height and diameter along an axis, as the cube. */
function cylinderVertices(axis: 0 | 1): number[] {
  const vertices: number[] = [];
  const turned = (along: number, a: number, b: number): number[] => (axis === 0 ? [along, a, b] : [b, along, a]);
  const segments = 48;
  for (let i = 0; i < segments; i++) {
    const [from, to] = [i, i + 1].map((step) => (2 * Math.PI * step) / segments) as [number, number];
    const rim = (angle: number): [number, number] => [Math.cos(angle) / 2, Math.sin(angle) / 2];
    const wall = (angle: number, side: number): number[] => [
      ...turned(side, ...rim(angle)),
      ...turned(0, Math.cos(angle), Math.sin(angle)),
    ];
    vertices.push(...wall(from, -0.5), ...wall(to, -0.5), ...wall(to, 0.5));
    vertices.push(...wall(from, -0.5), ...wall(to, 0.5), ...wall(from, 0.5));
    for (const side of [-0.5, 0.5]) {
      for (const place of [[0, 0] as [number, number], rim(from), rim(to)]) {
        vertices.push(...turned(side, ...place), ...turned(2 * side, 0, 0));
      }
    }
  }
  return vertices;
}

/** A unit ball, as the cube. */
function ballVertices(): number[] {
  const [columns, rows] = [16, 10];
  const at = (column: number, row: number): number[] => {
    const [a, e] = [(2 * Math.PI * column) / columns, (Math.PI * row) / rows];
    return [Math.cos(a) * Math.sin(e), Math.cos(e), Math.sin(a) * Math.sin(e)];
  };
  const vertices: number[] = [];
  for (let c = 0; c < columns; c++) {
    for (let r = 0; r < rows; r++) {
      for (const p of [at(c, r), at(c + 1, r), at(c + 1, r + 1), at(c, r), at(c + 1, r + 1), at(c, r + 1)]) {
        vertices.push(...p, ...p);
      }
    }
  }
  return vertices;
}
