/** What is on this phone, and the way to record more. */
import { button, el, picture } from '../dom';
import type { StoredCapture } from '../storage/database';
import { TEXT } from '../strings';
import { whyNoAr } from '../xr/session';
import type { App, Screen } from './app';
import { photosScreen } from './photos';
import { recordScreen } from './record';
import { reviewScreen } from './review';
import { uploadText } from './upload-text';

export const homeScreen: Screen = async (app) => {
  const reason = await whyNoAr();
  const list = el('ul', { className: 'captures' });
  app.root.replaceChildren(
    el('h1', {}, TEXT.title),
    el('p', {}, TEXT.intro),
    el('p', { className: app.pairing === null ? 'note' : 'note good' }, app.pairing ? TEXT.paired : TEXT.notPaired),
    reason === null
      ? button(TEXT.record, () => app.show(recordScreen), 'primary')
      : el('p', { className: 'note bad', role: 'alert' }, TEXT.noAr[reason]),
    ...(reason === null || reason === 'insecure'
      ? []
      : [el('p', {}, TEXT.photos.why), button(TEXT.photos.offer, () => app.show(photosScreen), 'primary')]),
    list,
  );
  const refresh = async (): Promise<void> => {
    const captures = await app.database.captures();
    const rows = await Promise.all(captures.map((capture) => row(app, capture)));
    list.replaceChildren(...(rows.length > 0 ? rows : [el('li', { className: 'empty' }, TEXT.noCaptures)]));
  };
  await refresh();
  return app.uploads.subscribe(() => void refresh());
};

async function row(app: App, capture: StoredCapture): Promise<HTMLElement> {
  const { header, state } = capture;
  const frames = await app.database.frames(header.capture_id);
  const thumbnail = frames[0]?.thumbnail;
  const open = el(
    'button',
    { type: 'button', className: 'capture', onclick: () => void app.show(reviewScreen(header.capture_id)) },
    ...(thumbnail === undefined ? [] : [picture(thumbnail, '')]),
    el(
      'span',
      {},
      el('strong', {}, header.name),
      el('small', {}, `${frames.length} ${TEXT.review.photos.toLowerCase()}`),
      el('small', { className: 'state' }, uploadText(app.uploads.states.get(header.capture_id)) ?? TEXT.states[state]),
    ),
  );
  return el('li', {}, open);
}
