/** An AR session on ARCore through WebXR, reduced to what a recording needs of each frame. */
import { REFERENCE_ANCHOR, type Anchor, type TrackedAnchor } from '../capture/format';
import { intrinsicsFromProjection, type Intrinsics } from '../geometry/camera';
import { add, type Pose, type Vec3 } from '../geometry/pose';
import type { Tracking } from '../guide/gates';
import { readTexture } from './readback';

/** WebXR Raw Camera Access, which the type definitions do not have yet. */
interface CameraView extends XRView {
  readonly camera?: { readonly width: number; readonly height: number } | null;
}
interface CameraBinding {
  getCameraImage(camera: NonNullable<CameraView['camera']>): WebGLTexture;
}
declare const XRWebGLBinding: new (session: XRSession, gl: WebGL2RenderingContext) => CameraBinding;

/** Support anchors stand round the object: they tell which corrections were of the whole room. */
const SUPPORT_OFFSETS: readonly Vec3[] = [
  [-0.5, 0, 0.5],
  [0.5, 0, 0.5],
];

export type NoAr = 'insecure' | 'browser' | 'device';

/** Why this browser cannot record in AR, or null if it can. */
export async function whyNoAr(): Promise<NoAr | null> {
  if (!window.isSecureContext) return 'insecure';
  if (navigator.xr === undefined || !('XRWebGLBinding' in window)) return 'browser';
  return (await navigator.xr.isSessionSupported('immersive-ar').catch(() => false)) ? null : 'device';
}

/** One moment of the session. Poses are to the tracker's world frame of that moment. */
export interface ArFrame {
  readonly time: number; // s
  readonly tracking: Tracking;
  readonly camera: Pose | null;
  readonly view: { readonly intrinsics: Intrinsics; readonly width: number; readonly height: number };
  /** Column-major; for drawing. */
  readonly projection: Float32Array;
  readonly worldToCamera: Float32Array;
  /** The object's anchors: where it stands, and where it stands after it was turned over. */
  readonly objects: readonly TrackedAnchor[];
  readonly support: readonly TrackedAnchor[];
  /** Where the middle of the screen meets a surface. */
  readonly hit: Vec3 | null;
  /** Copy the camera's image now; its pixels come later, RGBA, bottom row first. */
  readImage(): Promise<Uint8Array<ArrayBuffer>>;
}

/** An anchor's pose as last tracked. */
export interface AnchorPose {
  readonly id: string;
  readonly role: Anchor['role'];
  readonly pose: Pose;
}

interface NamedAnchor {
  readonly id: string;
  readonly role: Anchor['role'];
  readonly anchor: XRAnchor;
  last: Pose;
}

interface PendingAnchor {
  readonly id: string;
  readonly role: Anchor['role'];
  readonly place: Vec3;
  readonly anchor: Promise<XRAnchor>;
}

export class ArSession {
  private anchors: NamedAnchor[] = []; // in the order in which they were placed
  private readonly framebuffer: WebGLFramebuffer;
  private readonly binding: CameraBinding;
  private placing: { readonly id: string; readonly resolve: (pending: PendingAnchor[]) => void } | null = null;

  private constructor(
    private readonly session: XRSession,
    readonly gl: WebGL2RenderingContext,
    private readonly space: XRReferenceSpace,
    private readonly hitSource: XRHitTestSource | null,
  ) {
    this.framebuffer = gl.createFramebuffer();
    this.binding = new XRWebGLBinding(session, gl);
  }

  /** Ask for the session; call it from a tap. Raises DOMException if the user or the browser refuses. */
  static async start(overlay: HTMLElement): Promise<ArSession> {
    const session = await navigator.xr!.requestSession('immersive-ar', {
      requiredFeatures: ['local', 'camera-access', 'anchors', 'hit-test', 'dom-overlay'],
      domOverlay: { root: overlay },
    });
    const canvas = document.createElement('canvas');
    const gl = canvas.getContext('webgl2', { xrCompatible: true, alpha: true, antialias: false })!;
    await session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
    const space = await session.requestReferenceSpace('local');
    const viewer = await session.requestReferenceSpace('viewer');
    const hitSource = (await session.requestHitTestSource?.({ space: viewer })) ?? null;
    return new ArSession(session, gl, space, hitSource);
  }

  /** Call `onFrame` for every frame, and `onEnd` once when the session ends, whoever ended it. */
  run(onFrame: (frame: ArFrame) => void, onEnd: () => void): void {
    this.session.addEventListener('end', onEnd, { once: true });
    const tick: XRFrameRequestCallback = (time, frame) => {
      this.session.requestAnimationFrame(tick);
      const described = this.describe(time / 1000, frame);
      if (described.hit !== null) this.createAnchors(frame, described.hit);
      onFrame(described);
    };
    this.session.requestAnimationFrame(tick);
  }

  /**
   * Make the object's anchor `id` where the middle of the screen meets a surface, upright, in place of one it had; and,
   * with the reference anchor, support anchors round it.
   */
  async placeAnchors(id: string): Promise<void> {
    const pending = await new Promise<PendingAnchor[]>((resolve) => (this.placing = { id, resolve }));
    const made: NamedAnchor[] = [];
    for (const { place, anchor, ...named } of pending) {
      made.push({ ...named, anchor: await anchor, last: { p: place, q: [0, 0, 0, 1] } });
    }
    const isReplaced = (old: NamedAnchor): boolean => made.some((anchor) => anchor.id === old.id);
    this.anchors.filter(isReplaced).forEach(({ anchor }) => anchor.delete());
    this.anchors = [...this.anchors.filter((old) => !isReplaced(old)), ...made];
  }

  /** Poses of all anchors as last tracked, in the order in which they were placed. */
  anchorPoses(): AnchorPose[] {
    return this.anchors.map(({ id, role, last }) => ({ id, role, pose: last }));
  }

  async end(): Promise<void> {
    await this.session.end().catch(() => undefined); // it may have ended by itself
  }

  /** Anchors can be made inside a frame only. */
  private createAnchors(frame: XRFrame, hit: Vec3): void {
    if (this.placing === null) return;
    const { id: object, resolve } = this.placing;
    const offsets = object === REFERENCE_ANCHOR ? SUPPORT_OFFSETS : [];
    const places = [hit, ...offsets.map((offset) => add(hit, offset))];
    const pending = places.map((place, index): PendingAnchor => {
      const [x, y, z] = place;
      const anchor = frame.createAnchor!(new XRRigidTransform({ x, y, z }), this.space);
      return index === 0
        ? { id: object, role: 'object', place, anchor }
        : { id: `support-${index}`, role: 'support', place, anchor };
    });
    resolve(pending);
    this.placing = null;
  }

  private describe(time: number, frame: XRFrame): ArFrame {
    const pose = frame.getViewerPose(this.space);
    const view = pose?.views[0] as CameraView | undefined;
    const camera = view?.camera ?? null;
    const tracked = (role: Anchor['role']): TrackedAnchor[] =>
      this.anchors.filter((named) => named.role === role).map((named) => this.track(named, frame));
    const size = { width: camera?.width ?? 0, height: camera?.height ?? 0 };
    return {
      time,
      tracking: pose == null || camera === null ? 'lost' : pose.emulatedPosition ? 'limited' : 'normal',
      camera: view === undefined ? null : poseOf(view.transform),
      view: { intrinsics: intrinsicsFromProjection(view?.projectionMatrix ?? [], size.width, size.height), ...size },
      projection: view?.projectionMatrix ?? new Float32Array(16),
      worldToCamera: view?.transform.inverse.matrix ?? new Float32Array(16),
      objects: tracked('object'),
      support: tracked('support'),
      hit: this.hit(frame),
      readImage: () => {
        if (camera === null) return Promise.reject(new Error('there is no camera image in this frame'));
        const texture = this.binding.getCameraImage(camera);
        return readTexture(this.gl, texture, size.width, size.height, this.framebuffer);
      },
    };
  }

  private track(named: NamedAnchor, frame: XRFrame): TrackedAnchor {
    const isTracked = frame.trackedAnchors?.has(named.anchor) ?? false;
    const pose = isTracked ? frame.getPose(named.anchor.anchorSpace, this.space) : undefined;
    if (pose != null) named.last = poseOf(pose.transform);
    return { id: named.id, ...named.last, tracked: pose != null };
  }

  private hit(frame: XRFrame): Vec3 | null {
    if (this.hitSource === null) return null;
    const pose = frame.getHitTestResults(this.hitSource)[0]?.getPose(this.space);
    return pose === undefined ? null : poseOf(pose.transform).p;
  }
}

function poseOf({ position, orientation }: XRRigidTransform): Pose {
  return {
    p: [position.x, position.y, position.z],
    q: [orientation.x, orientation.y, orientation.z, orientation.w],
  };
}
