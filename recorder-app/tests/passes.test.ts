import { IDBFactory } from 'fake-indexeddb';
import 'fake-indexeddb/auto';
import { describe, expect, it } from 'vitest';
import { captureDocument, REFERENCE_ANCHOR, TURNED_ANCHOR, type TrackedAnchor } from '../src/capture/format';
import { add, IDENTITY, type Pose, type Vec3 } from '../src/geometry/pose';
import { offsetsOf, Recording, showsTurned, type Encode } from '../src/record/recording';
import { Database } from '../src/storage/database';
import type { AnchorPose, ArFrame } from '../src/xr/session';

const BOX = { center: [0, 0.1, 0], size: [0.2, 0.2, 0.2] } as const;
const FLAT = { center: [0, 0.05, 0], size: [0.2, 0.1, 0.2] } as const;
const BEFORE: Vec3 = [0, 0, -1]; // where the object stands in the room, and where after it was turned over
const AFTER: Vec3 = [2, 0, -1];
const LENS = { intrinsics: { fx: 500, fy: 500, cx: 240, cy: 320 }, width: 480, height: 640 };

const anchored = (id: string, p: Vec3): TrackedAnchor => ({ id, p, q: IDENTITY.q, tracked: true });
const placed = (id: string, p: Vec3, role: AnchorPose['role'] = 'object'): AnchorPose => {
  return { id, role, pose: { p, q: IDENTITY.q } };
};

/** What the session tells while the phone is a metre off the object at `place`, `azimuth` degrees round it. */
function frame(place: Vec3, azimuth: number, time: number, shift: Vec3 = [0, 0, 0]): ArFrame {
  const a = (azimuth * Math.PI) / 180;
  const camera: Pose = {
    p: add(add(place, [Math.sin(a), 0.1, Math.cos(a)]), shift),
    q: [0, Math.sin(a / 2), 0, Math.cos(a / 2)], // towards the object
  };
  return {
    time,
    tracking: 'normal',
    camera,
    view: LENS,
    projection: new Float32Array(16),
    worldToCamera: new Float32Array(16),
    objects: [anchored(REFERENCE_ANCHOR, add(BEFORE, shift)), anchored(TURNED_ANCHOR, add(AFTER, shift))],
    support: [anchored('support-1', add([0.5, 0, 0], shift))],
    hit: null,
    readImage: () => Promise.resolve(new Uint8Array(4)),
  };
}

interface Recorded {
  readonly database: Database;
  readonly recording: Recording;
  readonly corrections: () => number;
  /** Photograph the object at a place from some directions. */
  readonly walk: (place: Vec3, azimuths: readonly number[], shift?: Vec3) => Promise<void>;
}

async function begun(sharpness: () => number = () => 100): Promise<Recorded> {
  const database = await Database.open(new IDBFactory());
  let [corrections, time] = [0, 0];
  const encode: Encode = () =>
    Promise.resolve({ jpeg: new Uint8Array([time]), thumbnail: new Uint8Array(1), luma: 120, sharpness: sharpness() });
  const events = { onKept: () => undefined, onCorrection: () => corrections++, onFull: () => undefined };
  const recording = new Recording(database, encode, BOX, events);
  const anchors = [placed(REFERENCE_ANCHOR, BEFORE), placed('support-1', [0.5, 0, 0], 'support')];
  await recording.begin('Part', { model: 'test', platform: 'node' }, anchors, null);
  const walk: Recorded['walk'] = async (place, azimuths, shift) => {
    for (const azimuth of azimuths) {
      recording.see(frame(place, azimuth, (time += 5), shift));
      await new Promise((resolve) => setTimeout(resolve, 5)); // the photo is kept
    }
  };
  return { database, recording, corrections: () => corrections, walk };
}

async function result({ database, recording }: Recorded) {
  const { header, state } = (await database.capture(recording.id))!;
  const records = (await database.frames(recording.id)).map((stored) => stored.record);
  return { header, state, records, document: captureDocument(header, records, []) };
}

describe('a part that is turned over', () => {
  it('is photographed relative to where it stands now, and covered afresh', async () => {
    const recorded = await begun();
    const { recording, walk } = recorded;
    await walk(BEFORE, [0, 30, 60, 90]);
    expect([recording.isTurned, recording.pass.dome.filled()]).toEqual([false, 4]);
    await recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    expect([recording.isTurned, recording.pass.dome.filled()]).toEqual([true, 0]);
    await walk(AFTER, [0, 30, 60]); // directions that the first side has
    expect([recording.count, recording.pass.dome.filled()]).toEqual([7, 3]);
    const { records, header } = await result(recorded);
    expect(records.map((record) => record.anchor!.id)).toEqual([
      ...Array<string>(4).fill(REFERENCE_ANCHOR),
      ...Array<string>(3).fill(TURNED_ANCHOR),
    ]);
    expect(records.map(({ i }) => i)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(records[5]!.anchor!.p).toEqual(AFTER);
    expect(records.every((record) => record.support?.length === 1)).toBe(true);
    expect(header.object).toEqual(BOX); // of the first side
  });

  it('takes no photo while the part is where the second side is not', async () => {
    const recorded = await begun();
    await recorded.recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    expect(recorded.recording.see(frame(BEFORE, 0, 1))).toContain('out-of-view');
    await recorded.walk(BEFORE, [0, 30]);
    expect(recorded.recording.count).toBe(0);
  });

  it('has the poses of all anchors as placed and as they are at the end, in version 1.1', async () => {
    const recorded = await begun();
    const { recording, walk } = recorded;
    await walk(BEFORE, [0]);
    await recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    await walk(AFTER, [0]);
    const shift: Vec3 = [0.3, 0.1, 0];
    await recording.finish([
      placed(REFERENCE_ANCHOR, add(BEFORE, shift)),
      placed('support-1', add([0.5, 0, 0], shift), 'support'),
      placed(TURNED_ANCHOR, add(AFTER, shift)),
    ]);
    const { header, state, document, records } = await result(recorded);
    expect(header.anchors.map(({ id, role }) => [id, role])).toEqual([
      [REFERENCE_ANCHOR, 'object'],
      ['support-1', 'support'],
      [TURNED_ANCHOR, 'object'],
    ]);
    for (const { pose_first, pose_last } of header.anchors) expect(pose_last.p).toEqual(add(pose_first.p, shift));
    expect([state, header.reference_anchor, document.version]).toEqual(['review', REFERENCE_ANCHOR, '1.1']);
    const bare = records.map((record) => ({ ...record, support: undefined }));
    expect(captureDocument(header, bare as never, []).version).toBe('1.1'); // the second anchor alone asks for it
  });

  it('is judged by its first side', async () => {
    const recorded = await begun();
    await recorded.walk(BEFORE, [0, 30, 60]);
    await recorded.recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    await recorded.walk(AFTER, [90, 120]);
    const { header, records } = await result(recorded);
    const offsets = offsetsOf(records, header);
    expect(offsets).toHaveLength(3);
    for (const [i, [x, y, z]] of offsets.entries()) {
      const a = (i * Math.PI) / 6;
      expect([x, y, z]).toEqual([expect.closeTo(Math.sin(a)), expect.closeTo(0), expect.closeTo(Math.cos(a))]);
    }
    expect(records.filter((record) => showsTurned(record, header)).map(({ i }) => i)).toEqual([3, 4]);
  });

  it('compares sharpness with photos of the same side only', async () => {
    const values = [100, 100, 100, 20, 20];
    const recorded = await begun(() => values.shift()!);
    await recorded.walk(BEFORE, [0, 30, 60]);
    await recorded.recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT); // a plain underside
    await recorded.walk(AFTER, [0, 30]);
    expect(recorded.recording.count).toBe(5);
  });

  it('does not take the way to the other place for a correction of the world', async () => {
    const recorded = await begun();
    await recorded.walk(BEFORE, [0]);
    await recorded.recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    await recorded.walk(AFTER, [0, 30]);
    expect(recorded.corrections()).toBe(0);
    await recorded.walk(AFTER, [60], [0.1, 0, 0]);
    expect(recorded.corrections()).toBe(1);
  });
});

describe('a part that is turned back', () => {
  it('goes on with its first side, as if nothing had been', async () => {
    const recorded = await begun();
    const { recording, walk } = recorded;
    await walk(BEFORE, [0, 30]);
    await recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    expect(await recording.turnBack()).toBe(true);
    await walk(BEFORE, [0, 60]);
    expect([recording.isTurned, recording.paused, recording.pass.dome.filled()]).toEqual([false, false, 3]);
    expect((await result(recorded)).header.anchors.map(({ id }) => id)).toEqual([REFERENCE_ANCHOR, 'support-1']);
  });

  it('stays turned over once a photo is there, even one still in work', async () => {
    const recorded = await begun();
    const { recording } = recorded;
    await recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    recording.see(frame(AFTER, 0, 1));
    expect(recording.count).toBe(0);
    expect(await recording.turnBack()).toBe(false);
    expect([recording.isTurned, recording.paused, recording.count]).toEqual([true, false, 1]);
  });

  it('leaves no second anchor when the recording ends without a photo of the second side', async () => {
    const recorded = await begun();
    await recorded.walk(BEFORE, [0]);
    await recorded.recording.turnOver(placed(TURNED_ANCHOR, AFTER), FLAT);
    await recorded.recording.finish([placed(REFERENCE_ANCHOR, BEFORE), placed(TURNED_ANCHOR, AFTER)]);
    const { header } = await result(recorded);
    expect(header.anchors.map(({ id }) => id)).toEqual([REFERENCE_ANCHOR, 'support-1']);
  });
});
