import type { Database, Pairing } from '../storage/database';
import type { UploadManager } from '../upload/manager';

/** What every screen gets. */
export interface App {
  readonly root: HTMLElement;
  readonly overlay: HTMLElement;
  readonly database: Database;
  readonly uploads: UploadManager;
  pairing: Pairing | null;
  show(screen: Screen): Promise<void>;
}

/** Fills `app.root` and returns what to call before the next screen does. */
export type Screen = (app: App) => Promise<() => void>;
