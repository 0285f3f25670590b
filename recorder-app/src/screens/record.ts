/** The AR screen: place the object's box, then walk round it. */
import { button, el } from '../dom';
import { relativeTo, subtract } from '../geometry/pose';
import { BINS, binOf, directionOf, RINGS, TARGET_VIEWS } from '../guide/coverage';
import type { Box, Warning } from '../guide/gates';
import { Recording } from '../record/recording';
import { progressText, TEXT, WARNINGS } from '../strings';
import { forgetPairing } from '../upload/manager';
import { drawBox, drawDome, Drawing, drawReticle } from '../xr/drawing';
import { Encoder } from '../xr/encoder';
import { ArSession, type ArFrame } from '../xr/session';
import type { App, Screen } from './app';
import { Dial } from './dial';
import { homeScreen } from './home';
import { reviewScreen } from './review';

const START_SIZE_M = 0.25;
const SIZE_LIMITS_M = [0.05, 2] as const;
const DRAG_M_PER_PIXEL = 0.001;
const CORRECTION_SHOWN_MS = 2500;

export const recordScreen: Screen = async (app) => {
  try {
    const session = await ArSession.start(app.overlay);
    return new RecordScreen(app, session).close;
  } catch {
    alert(TEXT.noAr.refused);
    await app.show(homeScreen);
    return () => undefined;
  }
};

class RecordScreen {
  private readonly encoder = new Encoder();
  private readonly drawing: Drawing;
  private readonly dial = new Dial();
  private readonly hint = el('p', { className: 'hint', role: 'status' });
  private readonly alert = el('p', { className: 'alert', role: 'alert' });
  private readonly progress = el('p', { className: 'progress' });
  private readonly actions = el('div', { className: 'actions' });
  private phase: 'search' | 'size' | 'shoot' = 'search';
  private width = START_SIZE_M;
  private height = START_SIZE_M;
  private recording: Recording | null = null;
  private noticeUntil = 0;
  private notice = '';
  private sound: AudioContext | null = null;

  constructor(
    private readonly app: App,
    private readonly session: ArSession,
  ) {
    this.drawing = new Drawing(session.gl);
    app.root.replaceChildren();
    app.overlay.hidden = false;
    app.overlay.replaceChildren(
      el('header', {}, this.hint, this.alert),
      el('footer', {}, el('div', { className: 'status' }, this.progress), this.actions),
    );
    app.overlay.addEventListener('pointermove', this.drag);
    this.enter('search');
    session.run(this.onFrame, () => void this.ended());
  }

  readonly close = (): void => {
    this.app.overlay.removeEventListener('pointermove', this.drag);
    this.app.overlay.hidden = true;
    this.app.overlay.replaceChildren();
    this.encoder.close();
    void this.sound?.close();
  };

  private get box(): Box {
    return { center: [0, this.height / 2, 0], size: [this.width, this.height, this.width] };
  }

  private enter(phase: typeof this.phase): void {
    this.phase = phase;
    if (phase === 'search') {
      this.actions.replaceChildren(button(TEXT.place.here, () => this.place(), 'primary'));
    } else if (phase === 'size') {
      this.actions.replaceChildren(
        button(TEXT.place.again, () => this.enter('search')),
        button(TEXT.place.start, () => this.begin(), 'primary'),
      );
    } else {
      const pause = button(TEXT.shoot.pause, () => {
        this.recording!.paused = !this.recording!.paused;
        pause.textContent = this.recording!.paused ? TEXT.shoot.resume : TEXT.shoot.pause;
      });
      this.actions.replaceChildren(
        pause,
        button(TEXT.shoot.photo, () => this.recording?.shoot(), 'shutter'),
        button(TEXT.shoot.finish, () => this.session.end(), 'primary'),
      );
      this.progress.before(this.dial.element);
    }
  }

  private async place(): Promise<void> {
    await this.session.placeAnchors();
    this.enter('size');
  }

  private async begin(): Promise<void> {
    const recording = new Recording(
      this.app.database,
      (pixels, width, height) => this.encoder.encode({ pixels, width, height }),
      this.box,
      {
        onKept: () => this.signal(),
        onCorrection: () => this.tell(TEXT.shoot.corrected, CORRECTION_SHOWN_MS),
        onFull: (why) => this.tell(why === 'storage' ? TEXT.shoot.full : TEXT.shoot.most, Number.POSITIVE_INFINITY),
      },
    );
    const anchors = this.session.anchorPoses().map(({ id, pose }) => ({
      id,
      role: id === 'object' ? ('object' as const) : ('support' as const),
      pose_first: pose,
      pose_last: pose,
    }));
    const device = { model: phoneModel(), platform: 'Android, Chrome' };
    await recording.begin(TEXT.defaultName(new Date()), device, anchors, this.app.pairing);
    if (this.app.pairing !== null) {
      this.app.pairing = null; // it is this capture's now
      forgetPairing();
    }
    this.sound = new AudioContext();
    this.recording = recording;
    this.enter('shoot');
  }

  private readonly onFrame = (frame: ArFrame): void => {
    const [warning] = this.recording?.see(frame) ?? []; // before drawing: a readback changes the state of WebGL
    this.drawing.begin(frame.projection, frame.worldToCamera);
    if (this.phase === 'search') {
      if (frame.hit !== null) drawReticle(this.drawing, frame.hit);
      this.say(frame.hit === null ? TEXT.place.search : TEXT.place.tap, '', '');
      this.actions.querySelector('button')!.disabled = frame.hit === null;
    } else if (this.phase === 'size') {
      if (frame.anchor !== null) drawBox(this.drawing, frame.anchor, this.box);
      const [width, height] = [this.width, this.height].map((metres) => (100 * metres).toFixed(0));
      this.say(TEXT.place.size, '', `${width!} × ${width!} × ${height!} cm`);
    } else {
      this.guide(frame, this.recording!, warning);
    }
  };

  private guide(frame: ArFrame, recording: Recording, warning: Warning | undefined): void {
    const { dome } = recording;
    const byRing = Array.from({ length: RINGS }, (_, ring) => dome.filled(ring));
    const progress = progressText(dome.filled(), TARGET_VIEWS, byRing);
    let camera = null;
    if (frame.anchor !== null) {
      drawBox(this.drawing, frame.anchor, this.box);
      drawDome(this.drawing, frame.anchor, this.box, dome);
      if (frame.camera !== null) {
        const offset = subtract(relativeTo(frame.anchor, frame.camera).p, this.box.center);
        camera = { azimuth: directionOf(offset).azimuth, ring: Math.floor(binOf(offset) / BINS) };
      }
    }
    this.dial.show(dome, camera, progress);
    const alert = warning === undefined || recording.paused ? '' : WARNINGS[warning];
    const notice = performance.now() < this.noticeUntil ? this.notice : TEXT.shoot.walk;
    this.say(recording.paused ? TEXT.shoot.paused : notice, alert, progress);
  }

  private say(hint: string, alert: string, progress: string): void {
    for (const [element, text] of [
      [this.hint, hint],
      [this.alert, alert],
      [this.progress, progress],
    ] as const) {
      if (element.textContent !== text) element.textContent = text;
      element.hidden = text === '';
    }
  }

  private tell(notice: string, forMs: number): void {
    this.notice = notice;
    this.noticeUntil = performance.now() + forMs;
  }

  /** A short click and a tick of the motor for each photo. */
  private signal(): void {
    navigator.vibrate(20);
    if (this.sound === null) return;
    const tone = new OscillatorNode(this.sound, { frequency: 1200 });
    const volume = new GainNode(this.sound, { gain: 0.1 });
    tone.connect(volume).connect(this.sound.destination);
    tone.start();
    tone.stop(this.sound.currentTime + 0.03);
  }

  private readonly drag = ({ movementX, movementY, buttons }: PointerEvent): void => {
    if (this.phase !== 'size' || buttons === 0) return;
    const limited = (metres: number): number => Math.min(SIZE_LIMITS_M[1], Math.max(SIZE_LIMITS_M[0], metres));
    this.width = limited(this.width + DRAG_M_PER_PIXEL * movementX);
    this.height = limited(this.height - DRAG_M_PER_PIXEL * movementY);
  };

  private async ended(): Promise<void> {
    if (this.recording === null) {
      await this.app.show(homeScreen);
      return;
    }
    await this.recording.finish(this.session.anchorPoses());
    await this.app.show(reviewScreen(this.recording.id));
  }
}

/** The phone's model as its browser tells it; newer browsers say "K" for every model. */
function phoneModel(): string {
  return /Android [\d.]+; ([^;)]+)/.exec(navigator.userAgent)?.[1] ?? 'unknown';
}
