/**
 * The recorder's figures: `npm run bench -- SERVER PHOTOS`, where SERVER is an ingest API that lets everyone pair. Use
 * `make recorder-bench`, which starts one. Prints what it measured as JSON.
 *
 * Rates are those of this machine, which draws the phone's camera and screen on its CPU: their ratios tell.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import type { Page, Request } from 'playwright-core';
import type { BundleFile } from '../src/capture/format';
import type { SignedPut } from '../src/upload/api';
import { BATCH, PARALLEL } from '../src/upload/queue';
import { launch, PHONE, photosKept, withEmulatedPhone } from './browser';
import { look, lookAway, place } from './walk';

const [server, photos] = [process.argv[2]!, Number(process.argv[3] ?? 300)];
const RATE_S = 8; // how long a frame rate is measured
const STEP_MS = 350; // the app takes no two photos within 300 ms
const LARGE = { width: 1080, height: 2160 }; // what ARCore's camera stream in full HD gives a screen of this shape
const NOISE = 0.06; // uniform, so a deviation of 4 of 255: what a phone's sensor shows indoors
const LIMIT_MS = 150_000;
const UPLINK = 1e6; // bytes/s of the network that is cut
const FULL_SPEED = 0.75; // of the files are sent before that

async function post<T>(path: string, body: unknown, token = ''): Promise<T> {
  const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
  const answer = await fetch(`${server}/api/${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as T;
}

const pair = (): Promise<{ link: string }> => post('pairings', {});

/** Frames a second of the AR session while `busy` goes on, and the page's processor time for one, milliseconds. */
async function frameRate(page: Page, busy: () => Promise<void>): Promise<{ fps: number; pageMs: number }> {
  const moment = async () => ({
    ...(await page.evaluate(() => ({ frames: window.emulator.frames.length, now: performance.now() }))),
    cpu: (await pageProcesses()).reduce((sum, { cpuTime }) => sum + cpuTime, 0),
  });
  const from = await moment();
  const end = Date.now() + 1000 * RATE_S;
  while (Date.now() < end) await busy();
  const to = await moment();
  const frames = to.frames - from.frames;
  return { fps: (1000 * frames) / (to.now - from.now), pageMs: (1000 * (to.cpu - from.cpu)) / frames };
}

let step = 0;
/** Go on round the part: a new direction with each call, three rings. */
async function walk(page: Page): Promise<void> {
  await look(page, step * 11, [15, 38, 60][Math.floor(step / 33) % 3]!);
  step++;
  await page.waitForTimeout(STEP_MS);
}

/** Memory that the process of the page has to itself, MB. */
function anonymousMegabytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1] ?? Number.NaN) / 1000;
}

/** Processes of pages with their workers: of the app's, and of empty ones. Drawing is another process's. */
async function pageProcesses() {
  const { processInfo } = await (await system).send('SystemInfo.getProcessInfo');
  return processInfo.filter(({ type }) => type === 'renderer');
}

async function pageMegabytes(): Promise<number> {
  return Math.max(...(await pageProcesses()).map(({ id }) => anonymousMegabytes(id)));
}

async function record(page: Page) {
  await page.getByRole('button', { name: 'Record a part' }).click();
  await place(page);
  await lookAway(page); // nothing is taken yet
  await page.getByRole('button', { name: 'Start recording' }).click();
  await page.getByRole('button', { name: 'Pause' }).click();
  await look(page, 0, 15);
  const idle = await frameRate(page, () => page.waitForTimeout(STEP_MS));
  await page.getByRole('button', { name: 'Resume' }).click();
  const recording = await frameRate(page, () => walk(page));
  const taken = await photosKept(page);

  // The rest in full size, which the CPU here is too slow to draw at a phone's rate: memory and bytes are the same.
  await page.evaluate(([size, noise]) => Object.assign(window.emulator, { camera: size, noise }), [
    LARGE,
    NOISE,
  ] as const);
  let peak = 0;
  const deadline = Date.now() + LIMIT_MS + 3000 * photos;
  for (let count = taken; count < photos; count = await photosKept(page)) {
    if (Date.now() > deadline) throw new Error(`only ${count} of ${photos} photos were taken`);
    await walk(page);
    peak = Math.max(peak, await pageMegabytes());
  }
  await page.getByRole('button', { name: 'Finish' }).click();
  await page.getByRole('button', { name: 'Upload' }).waitFor();
  peak = Math.max(peak, await pageMegabytes());
  const files = await kept(page);
  const large = files.slice(taken + 2); // two were in work when the size changed
  return {
    files,
    figures: {
      framesPerSecondIdle: idle.fps,
      framesPerSecondRecording: recording.fps,
      pageMillisecondsAFrame: recording.pageMs,
      photosTakenMeanwhile: taken,
      photos: files.length,
      peakPageMegabytes: peak,
      megabytesAPhoto: large.reduce((sum, { size }) => sum + size, 0) / large.length / 1e6,
    },
  };
}

/** The photos on the phone. */
function kept(page: Page): Promise<BundleFile[]> {
  return page.evaluate(
    () =>
      new Promise<BundleFile[]>((resolve) => {
        const opened = indexedDB.open('scan2twin-recorder');
        opened.onsuccess = () => {
          const all = opened.result.transaction('frames').objectStore('frames').getAll();
          all.onsuccess = () => {
            const frames = all.result as (Omit<BundleFile, 'name'> & { record: { file: string } })[];
            resolve(frames.map(({ record, size, sha256 }) => ({ name: record.file, size, sha256 })));
          };
        };
      }),
  );
}

/** Bytes a second of files of these sizes sent by the bare browser: addresses signed before, three at a time. */
async function rawRate(page: Page, files: readonly BundleFile[]): Promise<number> {
  const token = (await pair()).link.split('#pair=')[1]!;
  const id = `bench-${Date.now()}`;
  await post('captures', { capture_id: id, name: 'raw', recorded_at: new Date().toISOString() }, token);
  const puts: (SignedPut & { size: number })[] = [];
  for (let i = 0; i < files.length; i += BATCH) {
    const batch = files.slice(i, i + BATCH);
    const { uploads } = await post<{ uploads: SignedPut[] }>(`captures/${id}/presign`, { files: batch }, token);
    puts.push(...uploads.map((put) => ({ ...put, size: batch.find(({ name }) => name === put.name)!.size })));
  }
  const seconds = await page.evaluate(
    async ({ waiting, parallel }) => {
      const start = performance.now();
      await Promise.all(
        Array.from({ length: parallel }, async () => {
          for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
            const body = new Uint8Array(next.size);
            const answer = await fetch(next.url, { method: 'PUT', headers: next.headers, body });
            if (!answer.ok) throw new Error(`PUT: ${answer.status}`);
          }
        }),
      );
      return (performance.now() - start) / 1000;
    },
    { waiting: puts, parallel: PARALLEL },
  );
  return total(files) / seconds;
}

/** Names and times (milliseconds) of what the page has fetched. Who listens to every request slows them down. */
const fetched = (page: Page): Promise<{ name: string; start: number; end: number }[]> =>
  page.evaluate(() =>
    performance
      .getEntriesByType('resource')
      .map((entry) => ({ name: entry.name, start: entry.startTime, end: entry.startTime + entry.duration })),
  );

/**
 * Upload with the app: the most as fast as it goes, the rest over a slow network that is cut once. Tells the bytes a
 * second of the first, and how many bytes of the rest went twice: of files under way at the cut, and of others.
 */
async function upload(page: Page, files: readonly BundleFile[]) {
  const sizes = new Map(files.map(({ name, size }) => [name.split('/').at(-1)!, size]));
  const nameOf = (url: string): string => new URL(url).pathname.split('/').at(-1)!;
  await page.evaluate(() => {
    performance.clearResourceTimings();
    performance.setResourceTimingBufferSize(5000);
  });
  await page.getByRole('button', { name: 'Upload' }).click();
  let done = await fetched(page);
  const first = (entries: typeof done) => entries.filter(({ name }) => sizes.has(nameOf(name)));
  while (first(done).length < FULL_SPEED * files.length) {
    await page.waitForTimeout(100);
    done = await fetched(page);
  }
  const seconds = (Math.max(...done.map(({ end }) => end)) - Math.min(...done.map(({ start }) => start))) / 1000;
  const sent = new Set(first(done).map(({ name }) => nameOf(name)));
  const rate = [...sent].reduce((sum, name) => sum + sizes.get(name)!, 0) / seconds;

  const [underWay, atCut] = [new Set<string>(), new Set<string>()];
  const again = { underWay: 0, others: 0 };
  let [arrived, isOffline] = [0, false];
  const fileOf = (request: Request): string | null => (request.method() === 'PUT' ? nameOf(request.url()) : null);
  page.on('request', (request) => {
    const file = fileOf(request);
    if (file === null || isOffline) return; // offline, nothing leaves the phone
    if (sent.has(file)) again[atCut.has(file) ? 'underWay' : 'others'] += sizes.get(file) ?? 0;
    sent.add(file);
    underWay.add(file);
  });
  page.on('requestfailed', (request) => underWay.delete(fileOf(request) ?? ''));
  page.on('response', (answer) => {
    const file = fileOf(answer.request());
    if (file === null) return;
    underWay.delete(file);
    sent.add(file); // it may have left before anybody listened
    arrived++;
  });
  const network = await page.context().newCDPSession(page);
  await network.send('Network.enable');
  const connect = (offline: boolean, uploadThroughput: number) =>
    network.send('Network.emulateNetworkConditions', { offline, latency: 0, downloadThroughput: -1, uploadThroughput });

  await connect(false, UPLINK);
  const few = arrived + PARALLEL; // those that went while the network was fast
  while (arrived < few || underWay.size < PARALLEL) await page.waitForTimeout(5);
  isOffline = true;
  underWay.forEach((file) => atCut.add(file));
  await connect(true, -1);
  await page.getByText('waiting: no connection').waitFor();
  isOffline = false;
  await connect(false, -1);
  await page.getByText('The server has it').waitFor();
  return {
    rate,
    figures: {
      megabytesUnderWayAtCut: [...atCut].reduce((sum, file) => sum + (sizes.get(file) ?? 0), 0) / 1e6,
      megabytesSentTwice: (again.underWay + again.others) / 1e6,
      megabytesSentTwiceThoughArrived: again.others / 1e6,
    },
  };
}

function total(files: readonly BundleFile[]): number {
  return files.reduce((sum, { size }) => sum + size, 0);
}

const browser = await launch();
const system = browser.newBrowserCDPSession();
const context = await browser.newContext(PHONE);
await withEmulatedPhone(context);
const page = await context.newPage();
page.setDefaultTimeout(LIMIT_MS);
await page.goto((await pair()).link);
const recorded = await record(page);
const atFullSpeed = recorded.files.slice(0, Math.ceil(FULL_SPEED * recorded.files.length));
await rawRate(page, recorded.files.slice(0, BATCH)); // the store makes its first volumes
const raw = await rawRate(page, atFullSpeed);
const uploaded = await upload(page, recorded.files);
await browser.close();

const folder = '../plugins/static';
const app = ['index.html', ...readdirSync(`${folder}/assets`).map((name) => `assets/${name}`)];
const gzipped = app.reduce((sum, name) => sum + gzipSync(readFileSync(`${folder}/${name}`)).length, 0);
console.log(
  JSON.stringify({
    ...recorded.figures,
    megabytesUploaded: total(recorded.files) / 1e6,
    rawMegabytesPerSecond: raw / 1e6,
    appMegabytesPerSecond: uploaded.rate / 1e6,
    appPercentOfRaw: (100 * uploaded.rate) / raw,
    ...uploaded.figures,
    gzippedKilobytes: gzipped / 1000,
  }),
);
