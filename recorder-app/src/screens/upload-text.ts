import { TEXT } from '../strings';
import type { UploadState } from '../upload/manager';

/** One line on how an upload stands, or null if nothing is going on. */
export function uploadText(state: UploadState | undefined): string | null {
  if (state === undefined) return null;
  if (state.kind === 'unpaired') return TEXT.upload.pairing;
  if (state.kind === 'refused') return state.why;
  const { sentFiles, files, waiting } = state.progress;
  return waiting === '' ? TEXT.upload.progress(sentFiles, files) : TEXT.upload.waiting(waiting);
}
