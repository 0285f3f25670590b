/**
 * The app without AR, as a page that is installed and read by everyone: `tsx e2e/plain.ts LINK PHOTOS OUT`, where PHOTOS
 * is a folder with photos.
 *
 * Takes plain photos with Chromium's own fake camera, adds those of PHOTOS and uploads; runs axe-core on every screen
 * and on the operator's pages in light and dark; checks what makes the app installable. Prints what it saw as JSON.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import axe from 'axe-core';
import type { Page } from 'playwright-core';
import { launch, PHONE, recordErrors } from './browser';

const [link, folder, out] = process.argv.slice(2) as [string, string, string];
const app = link.replace(/#.*/, '');
const TAKEN = 2;

const browser = await launch('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream');
const violations: Record<string, string[]> = {};

/** What axe-core finds wrong with labels, contrast, roles and structure. */
async function audit(page: Page, name: string): Promise<void> {
  await page.evaluate(axe.source);
  const found = await page.evaluate(() => (window as unknown as { axe: typeof axe }).axe.run());
  violations[name] = found.violations.map(({ id, nodes }) => `${id}: ${nodes[0]!.html}`);
  await page.screenshot({ path: `${out}/${name}.png` });
}

const context = await browser.newContext({ ...PHONE, permissions: ['camera'] });
const page = await context.newPage();
page.setDefaultTimeout(150_000);
const errors = recordErrors(page);
await page.goto(link);
await audit(page, 'plain-home');
await page.getByRole('button', { name: 'Take plain photos instead' }).click();
await page.locator('video').evaluate((video: HTMLVideoElement) => (video.videoWidth > 0 ? undefined : video.play()));
for (let i = 1; i <= TAKEN; i++) {
  await page.getByRole('button', { name: 'Take photo' }).click();
  await page.getByText(`${i} photo`).waitFor();
}
const files = readdirSync(folder).map((name) => join(folder, name));
await page.locator('input[type=file]').setInputFiles(files);
await page.getByText(`${TAKEN + files.length} photos`).waitFor();
await audit(page, 'plain-photos');
await page.getByRole('button', { name: 'Finish' }).click();
await page.getByRole('button', { name: 'Upload' }).waitFor();
await audit(page, 'plain-review');
await page.getByRole('button', { name: 'Upload' }).click();
await page.getByText('The server has it').waitFor();
await audit(page, 'plain-uploaded');

const install = await page.evaluate(async () => {
  await navigator.serviceWorker.ready;
  const address = document.querySelector<HTMLLinkElement>('link[rel=manifest]')!.href;
  const manifest = (await (await fetch(address)).json()) as {
    name: string;
    short_name: string;
    start_url: string;
    display: string;
    icons: { src: string; sizes: string; purpose: string }[];
  };
  const icons = await Promise.all(
    manifest.icons.map(async ({ src, sizes, purpose }) => {
      const image = new Image();
      image.src = new URL(src, address).href;
      await image.decode();
      return { sizes, purpose, width: image.naturalWidth, height: image.naturalHeight };
    }),
  );
  return {
    ...manifest,
    icons,
    secure: isSecureContext,
    viewport: document.querySelector('meta[name=viewport]') !== null,
  };
});
await context.close();

for (const theme of ['light', 'dark'] as const) {
  const operator = await browser.newContext({
    colorScheme: theme,
    httpCredentials: { username: 'ann', password: 'right' },
  });
  const desk = await operator.newPage();
  await desk.goto(new URL('../pair', app).href);
  await desk.getByRole('button', { name: 'Show a code' }).click();
  await desk.getByText('Waiting for the phone').waitFor();
  await audit(desk, `pair-${theme}`);
  for (const name of ['gallery', 'runs/no-such-run/model', 'runs/no-such-run/masks']) {
    await desk.goto(new URL(`../${name}`, app).href);
    await audit(desk, `${name.replaceAll('/', '-')}-${theme}`);
  }
  await operator.close();
}
await browser.close();
console.log(JSON.stringify({ violations, install, photos: TAKEN + files.length, errors }));
