/** A small recording for tests: an orbit of noise "images" round an anchor. */
import type { CaptureHeader, FrameRecord } from '../src/capture/format';
import { imageName } from '../src/capture/format';
import type { Database, StoredCapture } from '../src/storage/database';

export function header(id = 'scan-20261123-0000000001'): CaptureHeader {
  const pose = { p: [0, 0, 0], q: [0, 0, 0, 1] } as const;
  return {
    capture_id: id,
    name: 'Gear box cover',
    recorded_at: '2026-11-23T10:11:12.000Z',
    device: { model: 'test', platform: 'node', tracker: 'arcore' },
    reference_anchor: 'object',
    anchors: [{ id: 'object', role: 'object', pose_first: pose, pose_last: pose }],
    object: { center: [0, 0.1, 0], size: [0.2, 0.2, 0.2] },
    scale: { metric: true, source: 'arcore' },
    camera: { focus: 'fixed', exposure_locked: false },
  };
}

export function stored(id?: string): StoredCapture {
  return {
    header: header(id),
    notes: '',
    state: 'queued',
    pairing: { token: 't', server: '' },
    runId: null,
    uploadedDocument: null,
  };
}

export function record(i: number): FrameRecord {
  return {
    i,
    file: imageName(i),
    t: 3 + i / 2,
    width: 480,
    height: 640,
    intrinsics: { fx: 500, fy: 500, cx: 240, cy: 320 },
    pose_world: { p: [0, 0, 1], q: [0, 0, 0, 1] },
    anchor: { id: 'object', p: [0, 0, 0], q: [0, 0, 0, 1], tracked: true },
    tracking: 'normal',
    sharpness: 100,
    luma: 120,
    angular_velocity: 0.1,
    linear_velocity: 0.2,
  };
}

export async function addFrames(database: Database, id: string, count: number, bytes = 1000): Promise<void> {
  for (let i = 0; i < count; i++) {
    const jpeg = crypto.getRandomValues(new Uint8Array(bytes));
    await database.addFrame(id, record(i), jpeg, jpeg.slice(0, 10));
  }
}
