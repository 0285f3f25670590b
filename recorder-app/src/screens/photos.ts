/** Photo mode: the camera with a shutter, or photos that are there already. */
import { button, el } from '../dom';
import { PhotoCapture } from '../record/photos';
import { StorageFullError } from '../storage/database';
import { TEXT } from '../strings';
import { forgetPairing } from '../upload/manager';
import { Encoder } from '../xr/encoder';
import type { App, Screen } from './app';
import { homeScreen } from './home';
import { reviewScreen } from './review';

// What the camera should give; it gives the nearest it can.
const CAMERA = { facingMode: 'environment', width: { ideal: 4096 }, height: { ideal: 3072 } };

export const photosScreen: Screen = async (app) => {
  const encoder = new Encoder();
  const photos = new PhotoCapture(
    app.database,
    (image) => encoder.encode(image),
    TEXT.defaultName(new Date(), TEXT.photos.defaultName),
    app.pairing,
    'browser',
  );
  const count = el('p', { className: 'note', role: 'status' }, TEXT.photos.count(0));
  const fault = el('p', { className: 'note bad', role: 'alert', hidden: true });
  const finish = button(TEXT.photos.finish, () => end(app, photos));
  finish.disabled = true;
  const video = el('video', { className: 'finder', autoplay: true, muted: true, playsInline: true, hidden: true });
  const keep = async (source: Blob | HTMLVideoElement, name: string): Promise<void> => {
    try {
      await photos.add(source);
      if ('vibrate' in navigator) navigator.vibrate(20); // iPhones have none
    } catch (error) {
      const isFull = error instanceof StorageFullError;
      fault.textContent = isFull ? TEXT.shoot.full : TEXT.photos.unreadable(name);
      fault.hidden = false;
    }
    count.textContent = TEXT.photos.count(photos.count);
    finish.disabled = photos.count === 0;
  };
  const take = button(TEXT.photos.take, () => keep(video, TEXT.photos.take), 'primary');
  take.hidden = true;
  const files = el('input', { type: 'file', accept: 'image/*', multiple: true });
  files.onchange = async () => {
    for (const file of files.files ?? []) await keep(file, file.name); // one after the other: each takes 50 MB
    files.value = '';
  };
  app.root.replaceChildren(
    button(TEXT.back, () => app.show(homeScreen), 'back'),
    el('h1', {}, TEXT.photos.defaultName),
    el('p', {}, TEXT.photos.hint),
    video,
    take,
    count,
    fault,
    el('label', {}, TEXT.photos.choose, files),
    finish,
  );
  const stream = await camera();
  if (stream === null) {
    fault.textContent = TEXT.photos.noCamera;
    fault.hidden = false;
  } else {
    video.srcObject = stream;
    video.hidden = take.hidden = false;
  }
  return () => {
    stream?.getTracks().forEach((track) => track.stop());
    encoder.close();
  };
};

async function camera(): Promise<MediaStream | null> {
  try {
    return await navigator.mediaDevices.getUserMedia({ video: CAMERA });
  } catch {
    return null;
  }
}

async function end(app: App, photos: PhotoCapture): Promise<void> {
  if (app.pairing !== null) {
    app.pairing = null; // it is this capture's now
    forgetPairing();
  }
  await app.show(reviewScreen(photos.id));
}
