/** Starts the app: its storage, its uploads, its first screen. */
import './style.css';
import { homeScreen } from './screens/home';
import type { App, Screen } from './screens/app';
import { Database } from './storage/database';
import { readPairing, UploadManager } from './upload/manager';

let leave: () => void = () => undefined;

async function start(): Promise<void> {
  const database = await Database.open();
  const app: App = {
    root: document.getElementById('app')!,
    overlay: document.getElementById('overlay')!,
    database,
    uploads: new UploadManager(database),
    pairing: readPairing(),
    async show(screen: Screen) {
      leave();
      leave = () => undefined;
      leave = await screen(app);
      window.scrollTo(0, 0);
    },
  };
  window.addEventListener('hashchange', () => {
    app.pairing = readPairing();
    void app.show(homeScreen);
  });
  await app.show(homeScreen);
  void app.uploads.work();
  await navigator.storage.persist().catch(() => false); // else the browser may clear it when the phone gets full
}

void start();
if ('serviceWorker' in navigator && import.meta.env.PROD) {
  navigator.serviceWorker.register('./service-worker.js').catch((error: unknown) => console.warn(error));
}
