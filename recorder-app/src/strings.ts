/** Everything the app says, in one place. */
import type { Finding } from './guide/quality';
import type { Warning } from './guide/gates';

export const TEXT = {
  title: 'scan2twin recorder',
  intro: 'Walk round a part with the phone. Its 3D model is made from the photos.',
  record: 'Record a part',
  paired: 'Paired: the next capture can be uploaded.',
  notPaired: 'Not paired: captures stay on this phone until you scan the QR code that Airflow shows.',
  noCaptures: 'No captures on this phone yet.',
  back: 'Back',
  noAr: {
    insecure: 'This page was opened without HTTPS, so the browser gives it no camera. Open the https:// address.',
    browser: 'This browser has no AR with camera access. Use Chrome on an Android phone.',
    device:
      'There is no AR here. Use Chrome on an Android phone; if this is one, install “Google Play Services for AR” and open this page again.',
    refused: 'AR did not start. Allow the camera for this page in the browser’s site settings, then try again.',
  },
  states: {
    recording: 'was interrupted; its photos are safe',
    review: 'not uploaded',
    queued: 'waiting for upload',
    uploaded: 'uploaded',
  },
  place: {
    search: 'Point at the surface on which the part stands',
    tap: 'Put the ring in the middle of the part, then tap “Place here”',
    here: 'Place here',
    size: 'Drag until the box holds the part: sideways for width, up and down for height',
    start: 'Start recording',
    again: 'Place again',
  },
  shoot: {
    walk: 'Walk slowly round the part',
    paused: 'Paused',
    pause: 'Pause',
    resume: 'Resume',
    photo: 'Take photo',
    finish: 'Finish',
    corrected: 'The phone corrected its position: that is normal, go on',
    full: 'The phone’s storage is full. Finish, upload, and delete old captures.',
    most: 'That is the most one capture can hold. Finish now.',
    turn: 'Turn the part over',
  },
  turn: {
    how: 'Turn the part over, onto its other side',
    meanwhile: 'No photos are taken meanwhile. Any place will do, the same or another.',
    done: 'It is turned over',
    back: 'Back to the first side',
    start: 'Go on recording',
    progress: (progress: string) => `Second side: ${progress}`,
  },
  photos: {
    offer: 'Take plain photos instead',
    why: 'The pipeline finds out where plain photos were taken from. It takes longer, and the model has no true size.',
    hint: 'Walk round the part, a photo every step, each with most of the last one in it. Put a newspaper under the part: it helps.',
    take: 'Take photo',
    choose: 'Choose photos from this phone',
    finish: 'Finish',
    count: (count: number) => `${count} ${count === 1 ? 'photo' : 'photos'}`,
    noCamera: 'The browser gives this page no camera. Allow it in the site settings, or choose photos.',
    unreadable: (name: string) => `${name} is not a photo that this browser can read.`,
    defaultName: 'Photos',
  },
  rings: ['from the side', 'from higher', 'from above'],
  review: {
    name: 'Name',
    notes: 'Notes',
    upload: 'Upload',
    zip: 'Save as .zip',
    remove: 'Delete this capture',
    really: 'Delete it for good?',
    removePhotos: (count: number) => `Delete ${count} ${count === 1 ? 'photo' : 'photos'}`,
    photos: 'Photos',
    hint: 'Tap photos that are blurred or wrong, then delete them.',
    photo: (i: number) => `Photo ${i}`,
    turned: (count: number) => `${count} ${count === 1 ? 'photo' : 'photos'} of the second side`,
    unpaired: 'Scan the QR code that Airflow shows to upload this capture. It stays on the phone until then.',
    run: 'The server has it. Its model appears in Airflow, run',
    verdict: { good: 'Good coverage', fair: 'Usable, but it could be better', bad: 'Not enough for a model' },
    plainVerdict: {
      good: 'Enough photos, if they go all the way round',
      fair: 'Usable, but it could be better',
      bad: 'Not enough for a model',
    },
  },
  upload: {
    progress: (sent: number, all: number) => `${sent} of ${all} files sent`,
    waiting: (why: string) => `waiting: ${why}`,
    pairing: 'The pairing has ended. Scan a new QR code; the capture is safe on this phone.',
  },
  defaultName: (when: Date, what = 'Part') =>
    `${what}, ${when.toLocaleDateString('en-GB')} ${when.toTimeString().slice(0, 5)}`,
  megabytes: (bytes: number) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`,
  views: (filled: number, target: number) => `${filled} of ${target} views`,
} as const;

export const WARNINGS: Record<Warning, string> = {
  lost: 'Tracking lost: hold still, point at the part',
  limited: 'Tracking is weak: move slowly, show more of the room',
  'out-of-view': 'Aim at the part',
  'too-fast': 'Slower',
  'too-close': 'Step back: closer than half a metre gets soft',
  'too-dark': 'Too dark: more light',
  blurred: 'Blurred: move slower',
};

export const FINDINGS: Record<Finding, string> = {
  'too-few': 'Fewer than 8 photos: the pipeline refuses it. Record more.',
  'one-side': 'All photos are from one side: the pipeline refuses it. Walk all the way round.',
  gap: 'One side has no photos and will be guessed. Walk all the way round.',
  'one-height': 'All photos are from one height: add a round from higher up.',
  'few-views': 'Fewer than 30 photos: more give a better model.',
};

/** “48 of 72 views, none from above yet” */
export function progressText(filled: number, target: number, byRing: readonly number[]): string {
  const missing = TEXT.rings.filter((_, ring) => byRing[ring] === 0);
  const all = TEXT.views(filled, target);
  return missing.length === 0 || missing.length === TEXT.rings.length
    ? all
    : `${all}, none ${missing.join(' or ')} yet`;
}
