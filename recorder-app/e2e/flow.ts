/**
 * The whole way on an emulated phone: `tsx e2e/flow.ts LINK OUT`, where LINK is what a pairing's QR code says.
 *
 * Places the object, walks three rounds with all that goes wrong on a real phone, reviews, uploads. Leaves screenshots
 * in OUT and prints what it saw as JSON.
 */
import { launch, photosKept, PHONE, recordErrors, withEmulatedPhone } from './browser';
import { LIMIT_MS, look, lookAway, lookFrom, morePhotosThan, photograph } from './walk';

const [link, out] = process.argv.slice(2) as [string, string];
const ROUNDS = [
  { elevation: 15, photos: 12 },
  { elevation: 38, photos: 8 },
  { elevation: 60, photos: 6 },
];

const browser = await launch();
const context = await browser.newContext(PHONE);
const page = await context.newPage();
const errors = recordErrors(page);
page.setDefaultTimeout(LIMIT_MS);

async function shot(name: string): Promise<void> {
  await page.screenshot({ path: `${out}/${name}.png` });
}

const kept = await context.newPage();
await kept.goto(link.replace(/#.*/, ''));
await kept.getByRole('alert').waitFor();
await kept.screenshot({ path: `${out}/no-ar.png` });
const withoutAr = await kept.getByRole('alert').innerText();
await kept.close();

await withEmulatedPhone(page);
await page.goto(link);
await page.getByRole('button', { name: 'Record a part' }).waitFor();
await shot('home');
const addressAfterPairing = page.url();
await page.getByRole('button', { name: 'Record a part' }).click();

// The ring is put where the object stands: the emulated phone looks at the origin of its room.
await lookFrom(page, [0, 0.9, 0.9], [0, 0, 0]);
await page.getByText('Put the ring').waitFor();
await shot('place');
await page.getByRole('button', { name: 'Place here' }).click();
await page.getByRole('button', { name: 'Start recording' }).waitFor();
await page.mouse.move(200, 400);
await page.mouse.down();
await page.mouse.move(250, 380, { steps: 4 });
await page.mouse.up();
const size = await page.locator('.progress').innerText();
await shot('size');
await lookAway(page); // so that nothing is taken yet
await page.getByRole('button', { name: 'Start recording' }).click();

const warnings: Record<string, string> = {};
const framesBefore = await page.evaluate(() => window.emulator.frames.length);
for (const [round, { elevation, photos }] of ROUNDS.entries()) {
  for (let i = 0; i < photos; i++) {
    await photograph(page, (360 * i) / photos + 3, elevation);
    if (round === 0 && i === 5) {
      await page.evaluate(() => window.emulator.correctWorld(0.12, [0.3, 0.05, -0.2]));
      await page.getByText('corrected its position').waitFor();
      await page.evaluate(() => (window.emulator.tracked = false));
      warnings['lost'] = await page.locator('.alert').innerText();
      await page.getByText('Tracking lost').waitFor();
      await shot('lost');
      await page.evaluate(() => (window.emulator.tracked = true));
    }
    if (round === 1 && i === 2) {
      const before = await photosKept(page);
      await page.evaluate(() => (window.emulator.light = 0.1));
      await look(page, 130, elevation);
      await page.getByText('Too dark').waitFor();
      warnings['darkPhotos'] = String((await photosKept(page)) - before);
      await page.evaluate(() => (window.emulator.light = 1));
      await morePhotosThan(page, before, 'where it was dark');
    }
  }
  if (round === 1) await shot('record');
}
const frames = await page.evaluate(() => window.emulator.frames);
const seconds = (frames.at(-1)! - frames[framesBefore]!) / 1000;
await page.getByRole('button', { name: 'Finish' }).click();
await page.getByRole('button', { name: 'Upload' }).waitFor();
await shot('review');

// A photo is deleted, the page is closed and opened again: everything else is still there.
await page.getByRole('button', { name: 'Photo 3', exact: true }).click();
await page.getByRole('button', { name: 'Delete 1 photo' }).click();
await page.getByRole('button', { name: 'Photo 3', exact: true }).waitFor({ state: 'detached' });
await page.getByLabel('Name').fill('Gear box cover');
await page.getByLabel('Notes').fill('left side is oily');
await page.getByRole('button', { name: 'Back' }).click();
await page.getByText('not uploaded').waitFor();
const photos = await photosKept(page);
// The app starts without a network once its service worker has kept it.
await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
await context.setOffline(true);
await page.reload();
await shot('offline');
await page.getByText('Gear box cover').click();
await page.getByRole('button', { name: 'Upload' }).waitFor();
const offlineStart = await page.getByLabel('Name').inputValue();
await page.getByRole('button', { name: 'Upload' }).click();
await page.getByText('waiting: no connection').waitFor();
await shot('waiting');
await context.setOffline(false);
await page.getByText('The server has it').waitFor();
await shot('uploaded');
const imagesLeft = await photosKept(page, 'images');
await browser.close();
const fps = (frames.length - framesBefore) / seconds;
console.log(
  JSON.stringify({ withoutAr, addressAfterPairing, size, warnings, photos, offlineStart, imagesLeft, fps, errors }),
);
