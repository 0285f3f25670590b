/** The AR screen: place the object's box, walk round it; and once more when the object is turned over. */
import { REFERENCE_ANCHOR, TURNED_ANCHOR } from '../capture/format';
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
  private readonly turn = button('', () => this.toOtherSide());
  private readonly actions = el('div', { className: 'actions' });
  private phase: 'search' | 'size' | 'shoot' | 'turn' = 'search';
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
      el(
        'footer',
        {},
        el('div', { className: 'status' }, this.dial.element, el('div', {}, this.progress, this.turn)),
        this.actions,
      ),
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
    const { recording } = this;
    this.dial.element.style.display = phase === 'shoot' ? '' : 'none';
    this.turn.hidden = true;
    const back = recording === null ? [] : [button(TEXT.back, () => this.enter('shoot'))];
    if (phase === 'turn') {
      this.actions.replaceChildren(
        ...back,
        button(TEXT.turn.done, () => this.enter('search'), 'primary'),
      );
    } else if (phase === 'search') {
      this.actions.replaceChildren(
        ...back,
        button(TEXT.place.here, () => this.place(), 'primary'),
      );
    } else if (phase === 'size') {
      this.actions.replaceChildren(
        ...back,
        button(TEXT.place.again, () => this.enter('search')),
        recording === null
          ? button(TEXT.place.start, () => this.begin(), 'primary')
          : button(TEXT.turn.start, () => this.goOn(recording), 'primary'),
      );
    } else {
      const pause = button(recording!.paused ? TEXT.shoot.resume : TEXT.shoot.pause, () => {
        recording!.paused = !recording!.paused;
        pause.textContent = recording!.paused ? TEXT.shoot.resume : TEXT.shoot.pause;
      });
      this.actions.replaceChildren(
        pause,
        button(TEXT.shoot.photo, () => recording!.shoot(), 'shutter'),
        button(TEXT.shoot.finish, () => this.session.end(), 'primary'),
      );
      this.turn.textContent = recording!.isTurned ? TEXT.turn.back : TEXT.shoot.turn;
    }
  }

  private async place(): Promise<void> {
    this.actions.replaceChildren(); // it is placed in the next frame that shows a surface
    await this.session.placeAnchors(this.recording === null ? REFERENCE_ANCHOR : TURNED_ANCHOR);
    this.enter('size');
  }

  /** Turn the object over; or back, if nothing of the second side is photographed yet. */
  private async toOtherSide(): Promise<void> {
    const recording = this.recording!;
    if (recording.isTurned) {
      await recording.turnBack();
      this.enter('shoot');
    } else {
      [this.width, this.height] = recording.pass.box.size;
      this.enter('turn');
    }
  }

  /** Record the second side, which is placed. */
  private async goOn(recording: Recording): Promise<void> {
    const anchor = this.session.anchorPoses().find(({ id }) => id === TURNED_ANCHOR)!;
    await recording.turnOver(anchor, this.box);
    recording.paused = false;
    this.enter('shoot');
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
    const device = { model: phoneModel(), platform: 'Android, Chrome' };
    await recording.begin(TEXT.defaultName(new Date()), device, this.session.anchorPoses(), this.app.pairing);
    if (this.app.pairing !== null) {
      this.app.pairing = null; // it is this capture's now
      forgetPairing();
    }
    this.sound = new AudioContext();
    this.recording = recording;
    this.enter('shoot');
  }

  private readonly onFrame = (frame: ArFrame): void => {
    // Before drawing: a readback changes the state of WebGL.
    const [warning] = this.phase === 'shoot' ? this.recording!.see(frame) : [];
    this.drawing.begin(frame.projection, frame.worldToCamera);
    if (this.phase === 'search') {
      if (frame.hit !== null) drawReticle(this.drawing, frame.hit);
      this.say(frame.hit === null ? TEXT.place.search : TEXT.place.tap, '', '');
      this.actions.querySelector('.primary')?.toggleAttribute('disabled', frame.hit === null);
    } else if (this.phase === 'size') {
      drawBox(this.drawing, frame.objects.at(-1)!, this.box);
      const [width, height] = [this.width, this.height].map((metres) => (100 * metres).toFixed(0));
      this.say(TEXT.place.size, '', `${width!} × ${width!} × ${height!} cm`);
    } else if (this.phase === 'turn') {
      this.say(TEXT.turn.meanwhile, TEXT.turn.how, '');
    } else {
      this.guide(frame, this.recording!, warning);
    }
  };

  private guide(frame: ArFrame, recording: Recording, warning: Warning | undefined): void {
    const { box, dome, sharpness } = recording.pass;
    const byRing = Array.from({ length: RINGS }, (_, ring) => dome.filled(ring));
    const views = progressText(dome.filled(), TARGET_VIEWS, byRing);
    const progress = recording.isTurned ? TEXT.turn.progress(views) : views;
    this.turn.hidden = recording.stopped || (recording.isTurned && sharpness.length > 0);
    const anchor = recording.anchorIn(frame);
    let camera = null;
    if (anchor !== null) {
      drawBox(this.drawing, anchor, box);
      drawDome(this.drawing, anchor, box, dome);
      if (frame.camera !== null) {
        const offset = subtract(relativeTo(anchor, frame.camera).p, box.center);
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
