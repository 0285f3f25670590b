/**
 * What goes wrong while a phone uploads: `tsx e2e/faults.ts SERVER PHOTOS`, where SERVER is the ingest API's
 * address and PHOTOS a folder with photos. Pairs as the operator `ann`. Prints what it saw as JSON.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { BrowserContext, Page, Route } from 'playwright-core';
import { launch, PHONE } from './browser';

const [server, folder] = process.argv.slice(2) as [string, string];
const FILES = readdirSync(folder).map((name) => join(folder, name));
const AUTHORIZATION = `Basic ${Buffer.from('ann:right').toString('base64')}`;
const LET_THROUGH = 3; // files, before a fault
const OPEN = { 'Access-Control-Allow-Origin': '*' };
const DONE = 'The server has it';

async function operator(method: string, path: string): Promise<{ id: string; link: string }> {
  const answer = await fetch(`${server}/api/pairings${path}`, {
    method,
    headers: { Authorization: AUTHORIZATION, 'Content-Type': 'application/json' },
    ...(method === 'POST' ? { body: '{}' } : {}),
  });
  return (answer.status === 204 ? {} : await answer.json()) as { id: string; link: string };
}

const browser = await launch();

/** A phone of its own with one capture, and how often the store took each file. */
async function phone(): Promise<{ context: BrowserContext; page: Page; sent: Map<string, number>; pairing: string }> {
  const context = await browser.newContext(PHONE);
  context.setDefaultTimeout(150_000);
  const sent = new Map<string, number>();
  context.on('response', (answer) => {
    if (answer.request().method() !== 'PUT') return;
    const name = new URL(answer.url()).pathname.split('/').at(-1)!;
    if (answer.ok()) sent.set(name, (sent.get(name) ?? 0) + 1);
    // It is there: what was under way as the tab closed went on to the store, which the page no longer heard of.
    if (answer.status() === 412) sent.set(name, sent.get(name) ?? 1);
  });
  const { id, link } = await operator('POST', '');
  const page = await context.newPage();
  await page.goto(link);
  await page.getByRole('button', { name: 'Take plain photos instead' }).click();
  await page.locator('input[type=file]').setInputFiles(FILES);
  await page.getByText(`${FILES.length} photos`).waitFor();
  await page.getByRole('button', { name: 'Finish' }).click();
  await page.getByRole('button', { name: 'Upload' }).waitFor();
  return { context, page, sent, pairing: id };
}

/** Let some files through, and do `otherwise` with the rest until the returned function is called. */
async function letThrough(context: BrowserContext, otherwise: (route: Route) => Promise<void>): Promise<() => void> {
  let [passed, lifted] = [0, false];
  await context.route(/\/images\//, (route) =>
    lifted || passed++ < LET_THROUGH ? route.continue() : otherwise(route),
  );
  return () => {
    lifted = true;
  };
}

async function until(ready: () => boolean): Promise<void> {
  while (!ready()) await new Promise((resolve) => setTimeout(resolve, 20));
}

function summary(sent: Map<string, number>): { files: number; twice: number } {
  return { files: sent.size, twice: [...sent.values()].filter((count) => count > 1).length };
}

/** Cut the network once some files are through; it comes back. */
async function networkCut() {
  const { context, page, sent } = await phone();
  const lift = await letThrough(context, async (route) => {
    await context.setOffline(true);
    await route.abort('internetdisconnected');
  });
  await page.getByRole('button', { name: 'Upload' }).click();
  await page.getByText('waiting: no connection').waitFor();
  lift();
  await context.setOffline(false);
  await page.getByText(DONE).waitFor();
  await context.close();
  return summary(sent);
}

/** The tab is closed while files are under way; the app is opened again later. */
async function tabClosed() {
  const { context, page, sent } = await phone();
  const lift = await letThrough(context, () => new Promise(() => undefined)); // no answer, ever
  await page.getByRole('button', { name: 'Upload' }).click();
  await until(() => sent.size >= LET_THROUGH);
  const address = page.url();
  await page.close();
  lift();
  const again = await context.newPage();
  await again.goto(address); // goes on by itself
  await again.getByText('uploaded', { exact: true }).waitFor();
  await context.close();
  return summary(sent);
}

/** The API and the store answer with errors for a while. */
async function serverErrors() {
  const { context, page, sent } = await phone();
  let errors = 0;
  await context.route(/\/presign$|\/images\//, (route) =>
    errors++ < 6 ? route.fulfill({ status: errors % 2 ? 500 : 503, headers: OPEN, body: 'down' }) : route.continue(),
  );
  await page.getByRole('button', { name: 'Upload' }).click();
  await page.getByText(DONE).waitFor();
  await context.close();
  return summary(sent);
}

/** The right to upload ends on the way; a new code is scanned and the rest goes under that. */
async function pairingEnded() {
  const { context, page, sent, pairing } = await phone();
  const lift = await letThrough(context, (route) => route.abort());
  await context.route(/\/presign$/, async (route) => {
    if (sent.size >= LET_THROUGH) await operator('DELETE', `/${pairing}`);
    await route.continue();
  });
  await page.getByRole('button', { name: 'Upload' }).click();
  await page.getByText('The pairing has ended').waitFor();
  const before = sent.size;
  lift();
  await context.unroute(/\/presign$/);
  const { link } = await operator('POST', '');
  await page.goto(link); // the same page: its pairing changes
  await page.locator('.capture').click();
  await page.getByRole('button', { name: 'Upload' }).click();
  await page.getByText(DONE).waitFor();
  await context.close();
  return { ...summary(sent), before };
}

async function twoAtOnce() {
  const phones = await Promise.all([phone(), phone()]);
  for (const { page } of phones) await page.getByRole('button', { name: 'Upload' }).click();
  for (const { page } of phones) await page.getByText(DONE).waitFor();
  for (const { context } of phones) await context.close();
  return phones.map(({ sent }) => summary(sent));
}

const seen = {
  files: FILES.length + 1, // and frames.jsonl
  networkCut: await networkCut(),
  tabClosed: await tabClosed(),
  serverErrors: await serverErrors(),
  pairingEnded: await pairingEnded(),
  twoAtOnce: await twoAtOnce(),
};
await browser.close();
console.log(JSON.stringify(seen));
