/** Headless Chromium as the end-to-end scripts use it, and the emulated phone in it. */
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import { build } from 'vite';

/** Of a context: a phone held upright. */
export const PHONE = { viewport: { width: 420, height: 840 }, hasTouch: true, isMobile: true } as const;

const FLAGS = [
  '--no-sandbox',
  '--use-gl=angle',
  '--use-angle=swiftshader',
  '--enable-unsafe-swiftshader',
  '--mute-audio',
];

/** Chromium with WebGL drawn on the CPU, and further flags. */
export function launch(...flags: string[]): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium',
    args: [...FLAGS, ...flags],
  });
}

/** Give every page of `on` the WebXR of an ARCore phone, and `window.emulator` to move it. */
export async function withEmulatedPhone(on: Page | BrowserContext): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'emulator-'));
  process.env['EMULATOR_OUT'] = folder;
  await build({ configFile: 'e2e/vite.config.ts', logLevel: 'error' });
  await on.addInitScript({ path: join(folder, 'emulator.js') });
}

/** What goes wrong on a page, from now on. */
export function recordErrors(page: Page): string[] {
  const errors: string[] = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text());
  });
  return errors;
}

/** How many rows a store of the app's database has. */
export function photosKept(page: Page, store: 'frames' | 'images' = 'frames'): Promise<number> {
  return page.evaluate(
    (name) =>
      new Promise<number>((resolve) => {
        const opened = indexedDB.open('scan2twin-recorder');
        opened.onsuccess = () => {
          const count = opened.result.transaction(name).objectStore(name).count();
          count.onsuccess = () => {
            opened.result.close();
            resolve(count.result);
          };
        };
      }),
    store,
  );
}
