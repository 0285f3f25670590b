import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { defineConfig, type Plugin } from 'vite';

/** Emits the service worker with the list of the files that make the app, so that it starts without a network. */
function serviceWorker(): Plugin {
  return {
    name: 'service-worker',
    apply: 'build',
    generateBundle(_, bundle) {
      const files = ['./', ...Object.keys(bundle).filter((name) => name !== 'index.html'), ...readdirSync('public')];
      const version = createHash('sha256')
        .update(JSON.stringify(Object.keys(bundle)))
        .digest('hex')
        .slice(0, 12);
      const source = readFileSync('service-worker.js', 'utf8')
        .replace('__FILES__', JSON.stringify(files))
        .replace('__VERSION__', version);
      this.emitFile({ type: 'asset', fileName: 'service-worker.js', source });
    },
  };
}

export default defineConfig({
  base: './',
  build: { target: 'es2022', outDir: process.env['RECORDER_OUT'] ?? '../plugins/static', emptyOutDir: true },
  plugins: [serviceWorker()],
  worker: { format: 'es' },
});
