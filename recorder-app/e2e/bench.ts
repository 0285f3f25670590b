/**
 * The recorder's figures: `npm run bench -- SERVER PHOTOS`, where SERVER is an ingest API that lets everyone pair. Use
 * `make recorder-bench`, which starts one. Prints what it measured as JSON.
 *
 * Rates are those of this machine, which draws the phone's camera and screen on its CPU: their ratios tell.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import type { Page } from 'playwright-core';
import { launch, PHONE, photosKept, withEmulatedPhone } from './browser';

const [server, photos] = [process.argv[2]!, Number(process.argv[3] ?? 300)];
const RATE_S = 8; // how long a frame rate is measured
const PARALLEL = 3;
const BATCH = 12;
const LARGE = { width: 4032, height: 3024 }; // 12 MP

interface SignedPut {
  readonly name: string;
  readonly url: string;
  readonly headers: Record<string, string>;
}

async function post<T>(path: string, body: unknown, token = ''): Promise<T> {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
  const answer = await fetch(`${server}/api/${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as T;
}

const pair = (): Promise<{ link: string }> => post('pairings', {});

/** Frames a second of the AR session while `busy` goes on. */
async function frameRate(page: Page, busy: () => Promise<void>): Promise<number> {
  const from = await page.evaluate(() => ({ frames: window.emulator.frames.length, now: performance.now() }));
  const end = Date.now() + 1000 * RATE_S;
  while (Date.now() < end) await busy();
  const to = await page.evaluate(() => ({ frames: window.emulator.frames.length, now: performance.now() }));
  return (1000 * (to.frames - from.frames)) / (to.now - from.now);
}

let step = 0;
/** Go on round the part: a new bin of the dome with each call, three rings. */
async function walk(page: Page): Promise<void> {
  const [azimuth, elevation] = [(step * 11 * Math.PI) / 180, [0.26, 0.66, 1.05][Math.floor(step / 33) % 3]!];
  step++;
  const level = 0.95 * Math.cos(elevation);
  await page.evaluate(([x, y, z]) => window.emulator.look([x, y, z], [0, 0.125, 0]), [
    level * Math.sin(azimuth),
    0.125 + 0.95 * Math.sin(elevation),
    level * Math.cos(azimuth),
  ] as const);
}

/** Memory that the process of the page has to itself, MB. */
function anonymousMegabytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1] ?? Number.NaN) / 1000;
}

function rendererPids(): number[] {
  const listed = execFileSync('ps', ['-eo', 'pid,args'], { encoding: 'utf8' }).split('\n');
  return listed.filter((line) => line.includes('--type=renderer')).map((line) => Number.parseInt(line, 10));
}

const others = new Set(rendererPids());
const browser = await launch();
const context = await browser.newContext(PHONE);
await withEmulatedPhone(context);
const page = await context.newPage();
page.setDefaultTimeout(150_000);
await page.goto((await pair()).link);
await page.getByRole('button', { name: 'Record a part' }).click();
await page.evaluate(() => window.emulator.look([0, 0.9, 0.9], [0, 0, 0]));
await page.getByText('Put the ring').waitFor();
await page.getByRole('button', { name: 'Place here' }).click();
await page.getByRole('button', { name: 'Start recording' }).waitFor();
await page.evaluate(() => window.emulator.look([0, 0.4, 0.9], [5, 0, 0])); // away: nothing is taken
await page.getByRole('button', { name: 'Start recording' }).click();
await page.getByRole('button', { name: 'Pause' }).waitFor();
const pause = (ms: number) => (): Promise<void> => page.waitForTimeout(ms);
await page.evaluate(() => window.emulator.look([0, 0.4, 0.9], [0, 0.1, 0]));
await page.getByRole('button', { name: 'Pause' }).click();
const idle = await frameRate(page, pause(250));
await page.getByRole('button', { name: 'Resume' }).click();
const before = await photosKept(page);
const recording = await frameRate(page, async () => {
  await walk(page);
  await page.waitForTimeout(350);
});
const taken = (await photosKept(page)) - before;

let peak = 0;
const pids = rendererPids().filter((pid) => !others.has(pid));
const deadline = Date.now() + 1000 * photos * 3;
while ((await photosKept(page)) < photos && Date.now() < deadline) {
  await walk(page);
  await page.waitForTimeout(320);
  peak = Math.max(peak, ...pids.map(anonymousMegabytes));
}
const kept = await photosKept(page);
await page.getByRole('button', { name: 'Finish' }).click();
await page.getByRole('button', { name: 'Upload' }).waitFor();
peak = Math.max(peak, ...pids.map(anonymousMegabytes));

// The same bytes by hand: addresses signed in batches as the app does, three at a time, nothing else.
const files = await page.evaluate(
  () =>
    new Promise<{ name: string; size: number; sha256: string }[]>((resolve) => {
      const opened = indexedDB.open('scan2twin-recorder');
      opened.onsuccess = () => {
        const all = opened.result.transaction('frames').objectStore('frames').getAll();
        all.onsuccess = () => {
          resolve(
            (all.result as { record: { file: string }; size: number; sha256: string }[]).map((frame) => ({
              name: frame.record.file,
              size: frame.size,
              sha256: frame.sha256,
            })),
          );
        };
      };
    }),
);
const bytes = files.reduce((sum, file) => sum + file.size, 0);
const token = (await pair()).link.split('#pair=')[1]!;
const id = `bench-${Date.now()}`;
await post('captures', { capture_id: id, name: 'raw', recorded_at: new Date().toISOString() }, token);
const raw = Date.now();
for (let i = 0; i < files.length; i += BATCH) {
  const batch = files.slice(i, i + BATCH);
  const { uploads } = await post<{ uploads: SignedPut[] }>(`captures/${id}/presign`, { files: batch }, token);
  const waiting = [...uploads];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const { size } = batch.find(({ name }) => name === next.name)!;
      const answer = await fetch(next.url, { method: 'PUT', headers: next.headers, body: new Uint8Array(size) });
      if (!answer.ok) throw new Error(`PUT: ${answer.status}`);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
}
const rawSeconds = (Date.now() - raw) / 1000;

let last = 0;
const start = Date.now();
page.on('response', (answer) => {
  if (answer.request().method() === 'PUT') last = Date.now();
});
await page.getByRole('button', { name: 'Upload' }).click();
await page.getByText('The server has it').waitFor();
const appSeconds = (last - start) / 1000;
await context.close();

// A photo of 12 MP of the same scene, through the same worker.
const large = await browser.newContext(PHONE);
await withEmulatedPhone(large);
const phone = await large.newPage();
await phone.goto((await pair()).link);
const largest = await phone.evaluate((size) => window.emulator.photoBytes(size.width, size.height), LARGE);
await browser.close();

const folder = '../plugins/static';
const app = ['index.html', ...readdirSync(`${folder}/assets`).map((name) => `assets/${name}`)];
const gzipped = app.reduce((sum, name) => sum + gzipSync(readFileSync(`${folder}/${name}`)).length, 0);
console.log(
  JSON.stringify({
    framesPerSecondIdle: idle,
    framesPerSecondRecording: recording,
    photosTakenMeanwhile: taken,
    photos: kept,
    peakPageMegabytes: peak,
    megabytesUploaded: bytes / 1e6,
    rawMegabytesPerSecond: bytes / 1e6 / rawSeconds,
    appMegabytesPerSecond: bytes / 1e6 / appSeconds,
    jpegMegabytesAt12Megapixels: largest / 1e6,
    gzippedKilobytes: gzipped / 1000,
  }),
);
