/**
 * A part that is turned over, on an emulated phone: `tsx e2e/underside.ts APP OUT`, where APP is the app's address.
 *
 * Records a round, turns the part over and thinks better of it, goes on, turns it over at last, places it elsewhere,
 * records it there, and saves the capture as OUT/capture.zip. Leaves screenshots in OUT and prints what it saw as JSON.
 */
import { launch, PHONE, recordErrors, withEmulatedPhone } from './browser';
import { LIMIT_MS, lookAway, photograph, place, stand, type Place } from './walk';

const [app, out] = process.argv.slice(2) as [string, string];
const FIRST = Array.from({ length: 9 }, (_, i): [number, number] => [40 * i + 3, i % 2 ? 45 : 15]);
const LATER: [number, number] = [20, 60];
const SECOND = Array.from({ length: 4 }, (_, i): [number, number] => [90 * i + 3, 20]);
/** Where the part stands after it was turned over: its middle is still in the room's, which the screen shows. */
const ELSEWHERE: Place = [0.04, 0, 0.03];

const browser = await launch();
const context = await browser.newContext(PHONE);
const page = await context.newPage();
const errors = recordErrors(page);
page.setDefaultTimeout(LIMIT_MS);
const shot = (name: string): Promise<unknown> => page.screenshot({ path: `${out}/${name}.png` });
const tap = (name: string): Promise<void> => page.getByRole('button', { name }).click();

await withEmulatedPhone(page);
await page.goto(app);
await tap('Record a part');
await place(page);
await lookAway(page);
await tap('Start recording');
for (const [azimuth, elevation] of FIRST) await photograph(page, azimuth, elevation);
await shot('first-side');

// Back before it is placed, and back after that: the first side goes on.
await tap('Turn the part over');
await tap('Back');
await tap('Turn the part over');
await shot('turn-over');
await tap('It is turned over');
await place(page, ELSEWHERE);
await lookAway(page);
await tap('Go on recording');
await page.getByText('Second side: 0 of').waitFor();
await tap('Back to the first side');
await photograph(page, ...LATER);
const afterBack = await page.locator('.progress').innerText();

await tap('Turn the part over');
await page.evaluate(() => (window.emulator.turned = true));
await tap('It is turned over');
await place(page, ELSEWHERE);
await shot('place-again');
await lookAway(page);
await tap('Go on recording');
for (const [i, [azimuth, elevation]] of SECOND.entries()) {
  await photograph(page, azimuth, elevation, ELSEWHERE);
  if (i > 0) continue;
  await page.getByRole('button', { name: 'Back to the first side' }).waitFor({ state: 'hidden' });
  await page.evaluate(() => window.emulator.correctWorld(0.12, [0.3, 0.05, -0.2]));
  await page.getByText('corrected its position').waitFor();
}
await shot('second-side');
const secondSide = await page.locator('.progress').innerText();
await tap('Finish');
await page.getByRole('button', { name: 'Upload' }).waitFor();
await shot('review');
const quality = await page.locator('.quality').innerText();
const download = page.waitForEvent('download');
await tap('Save as .zip');
await (await download).saveAs(`${out}/capture.zip`);
await browser.close();

const eyes = [
  ...[...FIRST, LATER].map(([azimuth, elevation]) => stand(azimuth, elevation)),
  ...SECOND.map(([azimuth, elevation]) => stand(azimuth, elevation, ELSEWHERE)),
];
console.log(
  JSON.stringify({ eyes, place: ELSEWHERE, first: FIRST.length + 1, afterBack, secondSide, quality, errors }),
);
