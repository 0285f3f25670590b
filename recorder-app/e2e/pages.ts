/**
 * What an operator sees in Airflow: `tsx e2e/pages.ts AIRFLOW SESSION NAME RUN REVIEW OUT`, where SESSION is a user's
 * token, NAME a capture's, RUN a run of it that has ended well and REVIEW one whose masks wait to be approved.
 *
 * Leaves screenshots in light and dark in OUT, approves the masks, and prints what it saw as JSON.
 */
import { readFileSync } from 'node:fs';
import type { FrameLocator, Page } from 'playwright-core';
import { launch, recordErrors } from './browser';

const [airflow, session, name, run, review, out] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
];
const DAG = `${airflow}/dags/reconstruct_capture/runs`;
const GALLERY = `${airflow}/plugin/captures-and-models`;

const browser = await launch();
const downloads: Record<string, string> = {};
const seen: Record<string, unknown> = { downloads };
const errors: string[][] = [];

async function open(theme: 'light' | 'dark'): Promise<Page> {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: theme });
  await context.addCookies([{ name: '_token', value: session, url: airflow }]);
  // Not in the report's frame, which is sandboxed and has no storage.
  await context.addInitScript((chosen) => {
    if (window === window.top) localStorage.setItem('theme', chosen);
  }, theme);
  const page = await context.newPage();
  page.setDefaultTimeout(90_000);
  errors.push(recordErrors(page));
  return page;
}

/** Open a page of the plugin inside Airflow's own and return what is in it. */
async function inside(page: Page, address: string, title: string): Promise<FrameLocator> {
  await page.goto(address);
  const content = page.frameLocator(`iframe[title="${title}"]`);
  await content.locator('h1').first().waitFor();
  return content;
}

/** Wait until <model-viewer> has drawn the model and return its size in metres. */
async function modelSize(tab: FrameLocator): Promise<number[]> {
  const viewer = tab.frameLocator('iframe.report').locator('model-viewer');
  return viewer.evaluate(async (element) => {
    const shown = element as HTMLElement & { loaded: boolean; getDimensions(): { x: number; y: number; z: number } };
    while (!shown.loaded) await new Promise((resolve) => setTimeout(resolve, 100));
    const { x, y, z } = shown.getDimensions();
    return [x, y, z];
  });
}

for (const theme of ['light', 'dark'] as const) {
  const page = await open(theme);
  const shot = async (name: string): Promise<void> => {
    await page.waitForTimeout(500); // pictures fade in
    await page.screenshot({ path: `${out}/airflow-${name}-${theme}.png` });
  };
  const pairing = await inside(page, `${airflow}/plugin/record`, 'Record');
  await pairing.getByRole('button', { name: 'Show a code' }).click();
  await pairing.getByText('Waiting for the phone').waitFor();
  await shot('pair');
  const gallery = await inside(page, GALLERY, 'Captures and models');
  await gallery.locator('.state').first().waitFor();
  await shot('gallery');
  await page.goto(`${DAG}/${run}`);
  await page.getByRole('link', { name: '3D model' }).click();
  const tab = page.frameLocator('iframe[title="3D model"]');
  seen['size'] = await modelSize(tab);
  await shot('model');
  if (theme === 'light') {
    for (const label of ['GLB', 'USDZ', 'OBJ', 'Report']) {
      const [download] = await Promise.all([
        page.waitForEvent('download'),
        tab.getByRole('link', { name: label, exact: true }).click(),
      ]);
      downloads[download.suggestedFilename()] = readFileSync(await download.path())
        .subarray(0, 4)
        .toString('latin1');
    }
  }
  const masks = await inside(page, `${DAG}/${review}/plugin/masks`, 'Masks');
  if (theme === 'light') await masks.getByRole('button', { name: 'Approve' }).waitFor();
  else {
    await masks.getByRole('button', { name: 'Approve' }).click();
    await masks.getByText('Answered: Approve').waitFor();
  }
  await masks.locator('img.sheet').evaluate((image: HTMLImageElement) => image.decode());
  await shot('masks');
  if (theme === 'dark') {
    // The run with the review goes on now, and finds everything done.
    const card = gallery.locator('.words', { hasText: name });
    const state = card.getByText('model ready');
    while ((await inside(page, GALLERY, 'Captures and models').then(() => state.count())) === 0)
      await page.waitForTimeout(2_000);
    seen['card'] = await card.innerText();
    await shot('gallery-ready');
  }
  await page.context().close();
}
await browser.close();
console.log(JSON.stringify({ ...seen, errors: errors.flat() }));
