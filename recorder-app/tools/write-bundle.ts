/**
 * Writes a bundle the way the app does, from what WebXR would report: `tsx tools/write-bundle.ts OUT.zip < input.json`.
 * Prints the quality summary. The tests of the pipeline's side read the result.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { IDBFactory, IDBKeyRange } from 'fake-indexeddb';
import { imageName, newCaptureId } from '../src/capture/format';
import { intrinsicsFromProjection } from '../src/geometry/camera';
import { poseFromMatrix, relativeTo, subtract, type Vec3 } from '../src/geometry/pose';
import { assess } from '../src/guide/quality';
import { Database } from '../src/storage/database';
import { exportZip } from '../src/storage/zip';

interface Input {
  readonly object: { center: Vec3; size: Vec3 };
  readonly frames: readonly {
    readonly jpeg: string; // a file
    readonly width: number;
    readonly height: number;
    readonly t: number;
    readonly view: number[]; // camera to world, 16, column-major
    readonly anchor: number[]; // anchor to world, likewise
    readonly projection: number[];
  }[];
}

globalThis.IDBKeyRange = IDBKeyRange;
const input = JSON.parse(readFileSync(0, 'utf8')) as Input;
const database = await Database.open(new IDBFactory());
const id = newCaptureId(new Date());
const anchors = input.frames.map((frame) => poseFromMatrix(frame.anchor));
await database.putCapture({
  header: {
    capture_id: id,
    name: 'From node',
    recorded_at: new Date().toISOString(),
    device: { model: 'node', platform: process.version, tracker: 'arcore' },
    reference_anchor: 'object',
    anchors: [{ id: 'object', role: 'object', pose_first: anchors[0]!, pose_last: anchors.at(-1)! }],
    object: input.object,
    scale: { metric: true, source: 'arcore' },
    camera: { focus: 'fixed', exposure_locked: false },
  },
  notes: '',
  state: 'review',
  pairing: null,
  runId: null,
  uploadedDocument: null,
});
const offsets: Vec3[] = [];
for (const [i, frame] of input.frames.entries()) {
  const pose = poseFromMatrix(frame.view);
  offsets.push(subtract(relativeTo(anchors[i]!, pose).p, input.object.center));
  const record = {
    i,
    file: imageName(i),
    t: frame.t,
    width: frame.width,
    height: frame.height,
    intrinsics: intrinsicsFromProjection(frame.projection, frame.width, frame.height),
    pose_world: pose,
    anchor: { id: 'object', ...anchors[i]!, tracked: true },
    support: [],
    tracking: 'normal' as const,
    sharpness: null,
    luma: null,
    angular_velocity: null,
    linear_velocity: null,
  };
  await database.addFrame(id, record, new Uint8Array(readFileSync(frame.jpeg)), new Uint8Array(0));
}
const chunks: Uint8Array[] = [];
await exportZip(database, id, (chunk) => chunks.push(chunk));
writeFileSync(process.argv[2]!, Buffer.concat(chunks));
console.log(JSON.stringify(assess(offsets)));
