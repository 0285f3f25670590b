import { defineConfig } from 'vite';

/** The emulated phone as one script that is put into the page before the app's own. */
export default defineConfig({
  publicDir: false,
  build: {
    outDir: process.env['EMULATOR_OUT'] ?? 'dist/emulator',
    lib: { entry: 'e2e/emulator.ts', formats: ['iife'], name: 'emulatedPhone', fileName: () => 'emulator.js' },
  },
});
