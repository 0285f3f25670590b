/** How the end-to-end scripts move the emulated phone: place the object, walk round it, wait for photos. */
import type { Page } from 'playwright-core';
import { photosKept } from './browser';

export type Place = readonly [number, number, number];

export const LIMIT_MS = 150_000; // for anything; an idle machine needs seconds
const DISTANCE_M = 0.95;
const CENTER_M = 0.125; // of the part, above what it stands on

/** Where a phone is that looks at the part from a direction; `at` is what the part stands on. Room, metres. */
export function stand(azimuthDeg: number, elevationDeg: number, at: Place = [0, 0, 0]): Place {
  const [a, e] = [(azimuthDeg * Math.PI) / 180, (elevationDeg * Math.PI) / 180];
  const level = DISTANCE_M * Math.cos(e);
  return [at[0] + level * Math.sin(a), at[1] + CENTER_M + DISTANCE_M * Math.sin(e), at[2] + level * Math.cos(a)];
}

export async function look(page: Page, azimuth: number, elevation: number, at: Place = [0, 0, 0]): Promise<void> {
  const target: Place = [at[0], at[1] + CENTER_M, at[2]];
  await lookFrom(page, stand(azimuth, elevation, at), target);
}

export async function lookFrom(page: Page, eye: Place, target: Place): Promise<void> {
  await page.evaluate(([from, to]) => window.emulator.look([...from], [...to]), [eye, target] as const);
}

/** Walk to a place and wait until its photo is kept. */
export async function photograph(page: Page, azimuth: number, elevation: number, at?: Place): Promise<void> {
  const before = await photosKept(page);
  await look(page, azimuth, elevation, at);
  await morePhotosThan(page, before, `${azimuth}°, ${elevation}°`);
}

export async function morePhotosThan(page: Page, before: number, from: string): Promise<void> {
  const deadline = Date.now() + LIMIT_MS;
  while ((await photosKept(page)) === before) {
    if (Date.now() > deadline) throw new Error(`no photo from ${from}`);
    await page.waitForTimeout(50);
  }
}

/** Put the ring at a place of the floor, and the anchor there; the box's size is asked for next. */
export async function place(page: Page, at: Place = [0, 0, 0]): Promise<void> {
  await lookFrom(page, [at[0], at[1] + 0.9, at[2] + 0.9], at);
  await page.getByText('Put the ring').waitFor();
  await page.getByRole('button', { name: 'Place here' }).click();
  await page.getByRole('button', { name: 'Place again' }).waitFor();
}

/** Look away from the part, so that nothing is taken. */
export async function lookAway(page: Page): Promise<void> {
  await lookFrom(page, [0, 0.4, 0.9], [5, 0, 0]);
}
