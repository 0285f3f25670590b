/** The coverage dome seen from above: three rings, the innermost from above; green where there is a photo. */
import { BINS, RINGS, type Dome } from '../guide/coverage';

const NAMESPACE = 'http://www.w3.org/2000/svg';
const OUTER = 48;
const RING_WIDTH = 12;

export class Dial {
  readonly element = document.createElementNS(NAMESPACE, 'svg');
  private readonly bins: SVGPathElement[] = [];
  private readonly needle = document.createElementNS(NAMESPACE, 'circle');

  constructor() {
    this.element.setAttribute('viewBox', '-50 -50 100 100');
    this.element.setAttribute('role', 'img');
    this.element.classList.add('dial');
    for (let bin = 0; bin < RINGS * BINS; bin++) {
      const path = document.createElementNS(NAMESPACE, 'path');
      path.setAttribute('d', wedge(Math.floor(bin / BINS), bin % BINS));
      this.bins.push(path);
    }
    this.needle.setAttribute('r', '5');
    this.needle.classList.add('needle');
    this.element.append(...this.bins, this.needle);
  }

  /** Show the dome, and where the camera is: azimuth in degrees and ring, or null. */
  show(dome: Dome, camera: { readonly azimuth: number; readonly ring: number } | null, label: string): void {
    this.bins.forEach((path, bin) => path.classList.toggle('taken', dome.counts[bin]! > 0));
    this.element.setAttribute('aria-label', label);
    this.needle.style.display = camera === null ? 'none' : '';
    if (camera === null) return;
    const [x, y] = point(OUTER - (camera.ring + 0.5) * RING_WIDTH, (camera.azimuth * Math.PI) / 180);
    this.needle.setAttribute('cx', x.toFixed(1));
    this.needle.setAttribute('cy', y.toFixed(1));
  }
}

function wedge(ring: number, bin: number): string {
  const [from, to] = [(2 * Math.PI * bin) / BINS, (2 * Math.PI * (bin + 0.85)) / BINS];
  const [outer, inner] = [OUTER - ring * RING_WIDTH, OUTER - (ring + 0.85) * RING_WIDTH];
  const corners = [point(outer, from), point(outer, to), point(inner, to), point(inner, from)];
  return `M${corners.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join('L')}Z`;
}

/** Azimuth 0, the front, is at the bottom; it grows to the right. */
function point(radius: number, azimuth: number): readonly [number, number] {
  return [radius * Math.sin(azimuth), radius * Math.cos(azimuth)];
}
