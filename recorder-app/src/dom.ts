/** Makes elements without a framework. */
type Child = Node | string;
type Properties<T extends HTMLElement> = Partial<Omit<T, 'style' | 'dataset'>> & { data?: Record<string, string> };

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  { data = {}, ...properties }: Properties<HTMLElementTagNameMap[K]> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

export function button(label: string, onclick: () => unknown, className = ''): HTMLButtonElement {
  return el('button', { type: 'button', className, onclick: () => void onclick() }, label);
}

/** A picture from JPEG bytes; its address is given back once it is shown. */
export function picture(bytes: Uint8Array<ArrayBuffer>, alt: string): HTMLImageElement {
  const url = URL.createObjectURL(new Blob([bytes], { type: 'image/jpeg' }));
  return el('img', { src: url, alt, onload: () => URL.revokeObjectURL(url) });
}
