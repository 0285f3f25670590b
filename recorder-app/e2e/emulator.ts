/**
 * An ARCore phone for headless Chromium: IWER's WebXR runtime, and what Chrome on Android has besides: one view,
 * camera images, hit tests on the floor, a world frame that corrects itself, tracking that gets lost.
 */
import { mat4, quat, vec3 } from 'gl-matrix';
import { XRDevice, XRFrame, XRSession, XRView } from 'iwer';
import { P_ANCHOR, P_SESSION, P_SPACE, P_VIEW } from 'iwer/lib/private.js';
import { XRSpaceUtils } from 'iwer/lib/spaces/XRSpace.js';
import { MARKERS, Scene } from './scene';

/* eslint-disable @typescript-eslint/no-unsafe-assignment, @typescript-eslint/no-unsafe-member-access,
   @typescript-eslint/no-unsafe-call, @typescript-eslint/no-unsafe-argument, @typescript-eslint/no-unsafe-return,
   @typescript-eslint/no-explicit-any, @typescript-eslint/unbound-method, @typescript-eslint/no-this-alias,
   @typescript-eslint/restrict-plus-operands -- IWER's inner parts have no types */

const PHONE: any = {
  name: 'emulated ARCore phone',
  controllerConfig: undefined,
  supportedSessionModes: ['inline', 'immersive-ar'],
  supportedFeatures: ['viewer', 'local', 'anchors', 'hit-test', 'dom-overlay', 'camera-access'],
  supportedFrameRates: [30],
  isSystemKeyboardSupported: false,
  internalNominalFrameRate: 30,
  environmentBlendModes: { 'immersive-ar': 'alpha-blend' },
  interactionMode: 'screen-space',
  userAgent: navigator.userAgent,
};
const FOV_Y = (58 * Math.PI) / 180;
/** The principal point is off the centre, as in real phones: 2 % of the width, 1 % of the height. */
const SHIFT = { x: 0.04, y: -0.02 };

type Vec3 = [number, number, number];

class Emulator {
  readonly markers = MARKERS;
  tracked = true;
  light = 1;
  /** Of the sensor: see the scene's. */
  noise = 0;
  /** Whether somebody has turned the part over. */
  turned = false;
  /** Of the camera's images, pixels: the shape of the screen, as Chrome's are. */
  camera = { width: 420, height: 840 };
  /** XR frames since the start, and when the first was: to measure the frame rate. */
  frames: number[] = [];
  private readonly device = new XRDevice(PHONE, { fovy: FOV_Y, stereoEnabled: false, ipd: 0 });
  private readonly worldFromRoom = mat4.create();
  private readonly cameraToRoom = mat4.create();
  private readonly scenes = new WeakMap<WebGL2RenderingContext, Scene>();
  private session: any = null;

  constructor() {
    this.device.installRuntime({ polyfillLayers: false, forceInstall: true });
    this.look([0, 0.9, 0.9], [0, 0.15, 0]);
    this.giveOneView();
    this.giveCamera();
    this.giveHitTests();
    this.giveOverlayAndFrames();
  }

  /** Put the phone somewhere in the room, looking at a point. */
  look(eye: Vec3, target: Vec3): void {
    mat4.targetTo(this.cameraToRoom, eye, target, [0, 1, 0]);
    this.moveDevice();
  }

  /** What ARCore does when it learns more of the room: everything gets new coordinates, nothing moves. */
  correctWorld(turn: number, shift: Vec3): void {
    const change = mat4.rotateY(mat4.create(), mat4.fromTranslation(mat4.create(), shift), turn);
    mat4.multiply(this.worldFromRoom, change, this.worldFromRoom);
    for (const anchor of this.session?.[P_SESSION].trackedAnchors ?? []) {
      const matrix = anchor[P_ANCHOR].anchorSpace[P_SPACE].offsetMatrix;
      mat4.multiply(matrix, change, matrix);
    }
    this.moveDevice();
  }

  private moveDevice(): void {
    const pose = mat4.multiply(mat4.create(), this.worldFromRoom, this.cameraToRoom);
    const [p, q] = [mat4.getTranslation(vec3.create(), pose), mat4.getRotation(quat.create(), pose)];
    this.device.position.set(p[0], p[1], p[2]);
    this.device.quaternion.set(q[0], q[1], q[2], q[3]);
  }

  private giveOneView(): void {
    const emulator = this;
    const getViewerPose = XRFrame.prototype.getViewerPose;
    (XRFrame.prototype as any).getViewerPose = function (space: any) {
      if (!emulator.tracked) return null;
      const pose: any = getViewerPose.call(this, space);
      const view = pose.views[0];
      view[P_VIEW].eye = 'none';
      view[P_VIEW].projectionMatrix[8] += SHIFT.x;
      view[P_VIEW].projectionMatrix[9] += SHIFT.y;
      if (pose.views.length > 1) Object.defineProperty(pose, 'views', { value: Object.freeze([view]) });
      return pose;
    };
  }

  private giveCamera(): void {
    const emulator = this;
    Object.defineProperty(XRView.prototype, 'camera', { configurable: true, get: () => emulator.camera });
    (globalThis as any).XRWebGLBinding = class {
      constructor(
        private readonly session: any,
        private readonly gl: WebGL2RenderingContext,
      ) {}
      getCameraImage(): WebGLTexture {
        if (!this.session[P_SESSION].activeFrame) throw new DOMException('no active frame', 'InvalidStateError');
        const { scene, projection } = emulator.view(this.session, this.gl);
        const { width, height } = emulator.camera;
        return scene.image(emulator.cameraToRoom, projection, width, height);
      }
    };
  }

  private giveHitTests(): void {
    const emulator = this;
    (XRSession.prototype as any).requestHitTestSource = () => Promise.resolve({ cancel: () => undefined });
    (XRFrame.prototype as any).getHitTestResults = () => {
      const [eye, m] = [mat4.getTranslation(vec3.create(), emulator.cameraToRoom), emulator.cameraToRoom];
      const forward: Vec3 = [-m[8], -m[9], -m[10]];
      if (forward[1] >= 0 || !emulator.tracked) return [];
      const way = -eye[1] / forward[1];
      const place = vec3.scaleAndAdd(vec3.create(), eye, forward, way);
      vec3.transformMat4(place, place, emulator.worldFromRoom);
      const getPose = (space: any) => {
        const spaceToWorld = XRSpaceUtils.calculateGlobalOffsetMatrix(space);
        const [x, y, z] = vec3.transformMat4(vec3.create(), place, mat4.invert(mat4.create(), spaceToWorld)!) as Vec3;
        return { transform: new XRRigidTransform({ x, y, z }) };
      };
      return [{ getPose }];
    };
  }

  private giveOverlayAndFrames(): void {
    const system: any = navigator.xr;
    const requestSession = system.requestSession.bind(system);
    system.requestSession = async (mode: string, options: any) => {
      const session = await requestSession(mode, options);
      this.session = session;
      const root: HTMLElement = options.domOverlay.root;
      const { parentElement, nextSibling } = root;
      (this.device as any).canvasContainer.appendChild(root);
      root.style.zIndex = '10';
      session.addEventListener('end', () => parentElement!.insertBefore(root, nextSibling), { once: true });
      const requestFrame = session.requestAnimationFrame.bind(session);
      session.requestAnimationFrame = (callback: XRFrameRequestCallback) =>
        requestFrame((time: number, frame: any) => {
          this.frames.push(performance.now());
          this.compose(session);
          callback(time, frame);
        });
      return session;
    };
  }

  /** Chrome shows the camera's picture behind what the page draws. */
  private compose(session: any): void {
    const gl: WebGL2RenderingContext = session.renderState.baseLayer.context;
    const { scene, projection } = this.view(session, gl);
    scene.draw(this.cameraToRoom, projection, gl.drawingBufferWidth, gl.drawingBufferHeight);
  }

  private view(session: any, gl: WebGL2RenderingContext): { scene: Scene; projection: mat4 } {
    let scene = this.scenes.get(gl);
    if (scene === undefined) this.scenes.set(gl, (scene = new Scene(gl)));
    scene.light = this.light;
    scene.noise = this.noise;
    scene.turned = this.turned;
    const projection = mat4.clone(session[P_SESSION].getProjectionMatrix('left'));
    projection[8] += SHIFT.x;
    projection[9] += SHIFT.y;
    return { scene, projection };
  }
}

declare global {
  interface Window {
    emulator: Emulator;
  }
}
window.emulator = new Emulator();
