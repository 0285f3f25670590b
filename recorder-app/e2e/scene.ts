/** The emulated phone's surroundings: a chequered floor, a textured box on it, and markers at known places. */
import { mat4 } from 'gl-matrix';

type Vec3 = readonly [number, number, number];

/** Balls of 2 cm at places (metres, floor at y = 0) and in colours that nothing else has. */
export const MARKERS: readonly { readonly at: Vec3; readonly color: Vec3 }[] = [
  { at: [0, 0.36, 0], color: [1, 0, 0] },
  { at: [0.2, 0.08, 0.16], color: [0, 1, 0] },
  { at: [-0.2, 0.12, 0.12], color: [0, 0, 1] },
  { at: [0.05, 0.2, -0.22], color: [1, 0, 1] },
];
const MARKER_SIZE = 0.02;

const VERTEX = `#version 300 es
in vec3 position, normal; uniform mat4 clipFromWorld; uniform vec3 offset, scale; out vec3 world, n;
void main() { world = position * scale + offset; n = normal; gl_Position = clipFromWorld * vec4(world, 1.); }`;
const FRAGMENT = `#version 300 es
precision highp float; in vec3 world, n; uniform vec3 color; uniform int kind; uniform float light; out vec4 pixel;
float noise(vec2 p) { return fract(sin(dot(floor(p), vec2(12.9898, 78.233))) * 43758.5453); }
void main() {
  vec3 c = color;
  if (kind == 1) c = mix(vec3(.3), vec3(.75), mod(floor(world.x * 10.) + floor(world.z * 10.), 2.)) * (.8 + .2 * noise(world.xz * 60.));
  if (kind == 2) {
    vec2 face = abs(n.y) > .5 ? world.xz : abs(n.x) > .5 ? world.yz : world.xy;
    c = mix(vec3(.55, .35, .2), vec3(.85, .75, .5), noise(face * 45.)) * (.75 + .25 * max(0., dot(n, normalize(vec3(.4, .8, .3)))));
  }
  pixel = vec4(c * light, 1.);
}`;

interface Shape {
  readonly vertices: WebGLVertexArrayObject;
  readonly count: number;
}

export class Scene {
  /** 1 in good light. */
  light = 1;
  private readonly program: WebGLProgram;
  private readonly cube: Shape;
  private readonly ball: Shape;
  private target: { framebuffer: WebGLFramebuffer; texture: WebGLTexture; width: number; height: number } | null = null;

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
    gl.bindAttribLocation(this.program, 1, 'normal');
    gl.linkProgram(this.program);
    this.cube = this.shape(cubeVertices());
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
    gl.uniformMatrix4fv(this.uniform('clipFromWorld'), false, clipFromWorld);
    gl.uniform1f(this.uniform('light'), this.light);
    this.put(this.cube, 1, [0, -0.01, 0], [4, 0.02, 4], [0, 0, 0]);
    this.put(this.cube, 2, [0, 0.13, 0], [0.22, 0.26, 0.18], [0, 0, 0]);
    for (const { at, color } of MARKERS) this.put(this.ball, 0, at, [MARKER_SIZE, MARKER_SIZE, MARKER_SIZE], color);
    gl.bindVertexArray(null);
    gl.disable(gl.DEPTH_TEST);
  }

  /** The camera's image as a texture of its own. */
  image(cameraToWorld: mat4, projection: mat4, width: number, height: number): WebGLTexture {
    const { gl } = this;
    const before = gl.getParameter(gl.FRAMEBUFFER_BINDING) as WebGLFramebuffer | null;
    this.target ??= this.makeTarget(width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target.framebuffer);
    this.draw(cameraToWorld, projection, width, height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, before);
    return this.target.texture;
  }

  private put(shape: Shape, kind: number, offset: Vec3, scale: Vec3, color: Vec3): void {
    const { gl } = this;
    gl.bindVertexArray(shape.vertices);
    gl.uniform1i(this.uniform('kind'), kind);
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
