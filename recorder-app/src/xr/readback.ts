/**
 * Reads a texture without stalling the GPU: a copy into a pixel buffer, fetched once its fence has passed.
 * Call it inside the XR frame that owns the texture; the copy is made at once, the bytes come later, bottom row first.
 */
export function readTexture(
  gl: WebGL2RenderingContext,
  texture: WebGLTexture,
  width: number,
  height: number,
  framebuffer: WebGLFramebuffer,
): Promise<Uint8Array<ArrayBuffer>> {
  const before = gl.getParameter(gl.FRAMEBUFFER_BINDING) as WebGLFramebuffer | null;
  const buffer = gl.createBuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  gl.bindBuffer(gl.PIXEL_PACK_BUFFER, buffer);
  gl.bufferData(gl.PIXEL_PACK_BUFFER, 4 * width * height, gl.STREAM_READ);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, 0);
  gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, null, 0);
  gl.bindFramebuffer(gl.FRAMEBUFFER, before);
  const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  return new Promise((resolve, reject) => {
    const poll = (): void => {
      const status = fence === null ? gl.WAIT_FAILED : gl.clientWaitSync(fence, 0, 0);
      if (status === gl.TIMEOUT_EXPIRED) {
        setTimeout(poll, POLL_MS);
        return;
      }
      gl.deleteSync(fence);
      const pixels = new Uint8Array(4 * width * height);
      if (status !== gl.WAIT_FAILED) {
        gl.bindBuffer(gl.PIXEL_PACK_BUFFER, buffer);
        gl.getBufferSubData(gl.PIXEL_PACK_BUFFER, 0, pixels);
        gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
      }
      gl.deleteBuffer(buffer);
      if (status === gl.WAIT_FAILED) reject(new Error('the GPU gave the image up'));
      else resolve(pixels);
    };
    setTimeout(poll, 0);
  });
}

const POLL_MS = 4; // a quarter of a frame
