/** One capture: its photos, what the pipeline will think of it, and where it goes. */
import { button, el, picture } from '../dom';
import { assess, assessPhotos } from '../guide/quality';
import { NO_TRACKER } from '../record/photos';
import { offsetsOf, showsTurned } from '../record/recording';
import type { CaptureState, StoredCapture, StoredFrame } from '../storage/database';
import { exportZip } from '../storage/zip';
import { FINDINGS, TEXT } from '../strings';
import { forgetPairing } from '../upload/manager';
import type { App, Screen } from './app';
import { homeScreen } from './home';
import { uploadText } from './upload-text';

export function reviewScreen(captureId: string): Screen {
  return async (app) => {
    const status = el('p', { className: 'note', role: 'status' });
    const shown = await fill(app, captureId, status);
    const refresh = async (): Promise<void> => {
      const capture = await app.database.capture(captureId);
      if (capture === undefined) return;
      status.textContent = statusText(app, capture);
      status.hidden = status.textContent === '';
      // What can be done with it changes with its state.
      if (capture.state !== shown) await app.show(reviewScreen(captureId));
    };
    await refresh();
    return app.uploads.subscribe(() => void refresh());
  };
}

/** Fill the screen and return the state of the capture it was filled for. */
async function fill(app: App, id: string, status: HTMLElement): Promise<CaptureState> {
  const capture = (await app.database.capture(id))!;
  const frames = await app.database.frames(id);
  const editable = capture.state === 'review' || capture.state === 'recording';
  const name = el('input', { value: capture.header.name, maxLength: 200, disabled: !editable });
  const notes = el('textarea', { value: capture.notes, maxLength: 2000, rows: 2, disabled: !editable });
  const save = async (): Promise<void> => {
    const header = { ...capture.header, name: name.value.trim() || capture.header.name };
    await app.database.updateCapture(id, { header, notes: notes.value });
  };
  name.onchange = notes.onchange = () => void save();
  const size = frames.reduce((sum, frame) => sum + frame.size, 0);
  app.root.replaceChildren(
    button(TEXT.back, () => (editable ? save() : Promise.resolve()).then(() => app.show(homeScreen)), 'back'),
    el('h1', {}, capture.header.name),
    status,
    el('label', {}, TEXT.review.name, name),
    el('label', {}, TEXT.review.notes, notes),
    quality(capture, frames),
    ...(editable || app.uploads.states.get(id)?.kind === 'unpaired'
      ? [button(TEXT.review.upload, () => save().then(() => send(app, id)), 'primary')]
      : []),
    ...(capture.state === 'uploaded' ? [] : [button(TEXT.review.zip, () => download(app, id))]),
    el('h2', {}, `${TEXT.review.photos}: ${frames.length}, ${TEXT.megabytes(size)}`),
    ...grid(app, id, frames, editable, save),
    button(TEXT.review.remove, () => remove(app, id), 'danger'),
  );
  return capture.state;
}

function quality({ header }: StoredCapture, frames: readonly StoredFrame[]): HTMLElement {
  const records = frames.map((frame) => frame.record);
  const isPlain = header.device.tracker === NO_TRACKER;
  const { verdict, findings } = isPlain ? assessPhotos(frames.length) : assess(offsetsOf(records, header));
  const turned = records.filter((record) => showsTurned(record, header)).length;
  return el(
    'section',
    { className: `quality ${verdict}` },
    el('strong', {}, (isPlain ? TEXT.review.plainVerdict : TEXT.review.verdict)[verdict]),
    el('ul', {}, ...findings.map((finding) => el('li', {}, FINDINGS[finding]))),
    el('p', { hidden: turned === 0 }, TEXT.review.turned(turned)),
  );
}

/** The photos; tapped ones are marked, and a button deletes them; `save` keeps what is typed but not yet kept. */
function grid(
  app: App,
  id: string,
  frames: readonly StoredFrame[],
  editable: boolean,
  save: () => Promise<void>,
): HTMLElement[] {
  const marked = new Set<number>();
  const removeMarked = button('', async () => {
    for (const i of marked) await app.database.deleteFrame(id, i);
    await save(); // the screen is filled anew
    await app.show(reviewScreen(id));
  });
  removeMarked.hidden = true;
  removeMarked.classList.add('danger', 'sticky');
  const photos = frames.map(({ record: { i }, thumbnail }) => {
    const photo = el('button', { type: 'button', disabled: !editable }, picture(thumbnail, TEXT.review.photo(i)));
    photo.setAttribute('aria-pressed', 'false');
    photo.onclick = () => {
      if (!marked.delete(i)) marked.add(i);
      photo.setAttribute('aria-pressed', String(marked.has(i)));
      removeMarked.hidden = marked.size === 0;
      removeMarked.textContent = TEXT.review.removePhotos(marked.size);
    };
    return photo;
  });
  const hint = el('p', { hidden: !editable }, TEXT.review.hint);
  return [hint, el('div', { className: 'photos' }, ...photos), removeMarked];
}

async function send(app: App, id: string): Promise<void> {
  const pairing = app.pairing ?? (await app.database.capture(id))?.pairing ?? null;
  if (pairing !== null) {
    await app.uploads.enqueue(id, pairing);
    app.pairing = null;
    forgetPairing();
  } else {
    alert(TEXT.review.unpaired);
  }
  await app.show(reviewScreen(id));
}

async function download(app: App, id: string): Promise<void> {
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  await exportZip(app.database, id, (chunk) => chunks.push(chunk));
  const url = URL.createObjectURL(new Blob(chunks, { type: 'application/zip' }));
  el('a', { href: url, download: `${id}.zip` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser has begun to save it by then
}

async function remove(app: App, id: string): Promise<void> {
  if (!confirm(TEXT.review.really)) return;
  await app.database.deleteCapture(id);
  await app.show(homeScreen);
}

function statusText(app: App, { header, state, runId }: StoredCapture): string {
  if (state === 'uploaded') return `${TEXT.review.run} ${runId ?? ''}`;
  return uploadText(app.uploads.states.get(header.capture_id)) ?? (state === 'queued' ? TEXT.states.queued : '');
}
