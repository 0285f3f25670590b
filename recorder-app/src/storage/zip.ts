/** A capture as one .zip, for people without a server. Images are stored, not deflated: JPEG does not get smaller. */
import { Zip, ZipPassThrough } from 'fflate';
import { captureDocument } from '../capture/format';
import { listFiles, type Database } from './database';

/** Write the capture's bundle to `sink` chunk by chunk; only one image is in memory at a time. */
export async function exportZip(
  database: Database,
  captureId: string,
  sink: (chunk: Uint8Array<ArrayBuffer>) => void,
): Promise<void> {
  const capture = await database.capture(captureId);
  if (capture === undefined) throw new Error(`there is no capture ${captureId} on this phone`);
  const frames = await database.frames(captureId);
  const { framesBytes, framesFile, images } = await listFiles(frames);
  const records = frames.map((frame) => frame.record);
  const document = captureDocument(capture.header, records, [framesFile, ...images]);
  const failures: Error[] = [];
  const zip = new Zip((error, chunk) => {
    if (error !== null) failures.push(error);
    else sink(chunk);
  });
  const add = (name: string, bytes: Uint8Array): void => {
    const entry = new ZipPassThrough(name);
    zip.add(entry);
    entry.push(bytes, true);
  };
  for (const { record } of frames) add(record.file, await database.image(captureId, record.i));
  add(framesFile.name, framesBytes);
  add('capture.json', new TextEncoder().encode(JSON.stringify(document)));
  zip.end();
  if (failures[0] !== undefined) throw failures[0];
}
