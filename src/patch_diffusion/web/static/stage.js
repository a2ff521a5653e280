// An image to draw a mask on, whose edges can be dragged outwards.

import {element, loaded} from './page.js';

const LARGEST = 520;  // of the stage on the screen, in CSS pixels
const MOST_UNDONE = 32;  // changes that can be taken back
const COLOUR = '#e8466b';  // of the mask
const SIDES = ['left', 'right', 'top', 'bottom'];

export class Stage {
  // onchange: called when the mask or the extension has changed.
  constructor(stride, onchange) {
    this.stride = stride;
    this.onchange = onchange;
    this.extend = {left: 0, right: 0, top: 0, bottom: 0};
    this.before = [];
    this.picture = element('canvas', {role: 'img', 'aria-label': 'image to edit'});
    this.mask = element('canvas', {className: 'mask', role: 'img', 'aria-label': 'mask: draw over what is to be filled in, or load a mask'});
    this.frame = element('div', {className: 'frame'}, this.picture, this.mask);
    this.grips = Object.fromEntries(SIDES.map(side => [side, this.grip(side)]));
    this.element = element('div', {className: 'stage'}, this.frame, ...Object.values(this.grips));
    this.brush = element('input', {type: 'range', min: 1, max: 40, value: 12});
    this.erase = element('input', {type: 'checkbox'});
    this.erase.style.width = 'auto';
    this.told = element('small', {role: 'status'});
    const eraser = element('label', {}, this.erase, 'Erase');
    eraser.style.width = 'auto';
    this.tools = element('div', {className: 'tools'}, element('label', {}, 'Brush size', this.brush), eraser,
      this.undoing = element('button', {className: 'small undo', type: 'button', title: 'Ctrl+Z', onclick: () => this.undo()}, 'Undo'),
      element('button', {className: 'small clear', type: 'button', onclick: () => { this.keep(); this.clear(); }}, 'Clear'), this.told);
    this.draw();
    document.addEventListener('keydown', this.key = event => {
      if (!this.element.isConnected) document.removeEventListener('keydown', this.key);
      else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z' && !event.shiftKey && !event.target.matches('input[type=number]')) {
        event.preventDefault();
        this.undo();
      }
    });
    this.watched = new ResizeObserver(() => this.layout());
  }

  async show(blob) {
    const source = URL.createObjectURL(blob);
    const image = await loaded(source);
    URL.revokeObjectURL(source);
    this.blob = blob;
    [this.width, this.height] = [image.width, image.height];
    for (const canvas of [this.picture, this.mask]) Object.assign(canvas, {width: image.width, height: image.height});
    this.picture.getContext('2d').drawImage(image, 0, 0);
    this.watched.observe(this.element.parentElement);
    this.clear();
  }

  clear() { this.put(null, {left: 0, right: 0, top: 0, bottom: 0}); }

  // The mask and the extension as they are, to be gone back to.
  keep() {
    this.before.push([this.mask.getContext('2d').getImageData(0, 0, this.width, this.height), {...this.extend}]);
    if (this.before.length > MOST_UNDONE) this.before.shift();
  }

  undo() { if (this.before.length) this.put(...this.before.pop()); }

  put(pixels, extend) {
    const context = this.mask.getContext('2d');
    context.clearRect(0, 0, this.width, this.height);
    if (pixels) context.putImageData(pixels, 0, 0);
    this.extend = extend;
    this.changed();
  }

  changed() {
    this.hasMask = this.covered().some((value, index) => index % 4 === 3 && value >= 128);
    this.undoing.disabled = !this.before.length;
    this.layout();
    this.onchange();
  }

  // A mask in place of what is drawn: a picture in base64, of the image's size and white where it is to be filled in.
  async load(text) {
    const white = await loaded(`data:image/png;base64,${text}`);
    this.keep();
    const context = this.mask.getContext('2d', {willReadFrequently: true});
    context.clearRect(0, 0, this.width, this.height);
    context.drawImage(white, 0, 0);
    const pixels = context.getImageData(0, 0, this.width, this.height);
    const colour = COLOUR.match(/\w\w/g).map(part => parseInt(part, 16));
    for (let place = 0; place < pixels.data.length; place += 4) {
      pixels.data[place + 3] = pixels.data[place];
      pixels.data.set(colour, place);
    }
    this.put(pixels, this.extend);
  }

  // An image that is restored as a whole is not drawn on.
  restoring(whether) {
    for (const part of [this.element, this.tools]) part.classList.toggle('restoring', whether);
  }

  get extended() { return SIDES.some(side => this.extend[side]); }

  get size() {
    const {left, right, top, bottom} = this.extend;
    return [this.height + top + bottom, this.width + left + right];
  }

  layout() {
    if (!this.element.parentElement) this.watched.disconnect();  // another image has taken its place
    if (!this.width || !this.element.parentElement) return;
    const [height, width] = this.size;
    const room = Math.min(this.element.parentElement.clientWidth, LARGEST) - 16;
    // The larger it is to become, the smaller a pixel: an image that is not extended leaves room for that.
    this.scale = Math.min(room / width, LARGEST / height, 0.72 * room / this.width);
    Object.assign(this.element.style, {width: `${width * this.scale}px`, height: `${height * this.scale}px`});
    for (const canvas of [this.picture, this.mask]) {
      Object.assign(canvas.style, {left: `${this.extend.left * this.scale}px`, top: `${this.extend.top * this.scale}px`,
        width: `${this.width * this.scale}px`, height: `${this.height * this.scale}px`});
    }
    this.told.textContent = this.extended ? `${height} × ${width} pixels, from ${this.height} × ${this.width}` : `${this.height} × ${this.width} pixels`;
  }

  grip(side) {
    const [across, sign] = {left: [true, -1], right: [true, 1], top: [false, -1], bottom: [false, 1]}[side];
    let from = null;
    const set = pixels => {
      const most = 2 * (across ? this.width : this.height);
      const snapped = Math.round(Math.min(Math.max(pixels, 0), most) / this.stride) * this.stride;
      if (snapped === this.extend[side]) return;
      if (!from?.kept) this.keep();  // a drag is one change
      if (from) from.kept = true;
      this.extend[side] = snapped;
      this.changed();
    };
    const grip = element('button', {type: 'button', className: `grip ${side}`, 'aria-label': `extend the ${side}: drag, or arrow keys`, title: `drag to extend the ${side}`});
    grip.addEventListener('pointerdown', event => {
      grip.setPointerCapture(event.pointerId);
      from = {at: across ? event.clientX : event.clientY, pixels: this.extend[side], scale: this.scale};
    });
    grip.addEventListener('pointermove', event => {
      if (from) set(from.pixels + sign * ((across ? event.clientX : event.clientY) - from.at) / from.scale);
    });
    for (const name of ['pointerup', 'pointercancel']) grip.addEventListener(name, () => { from = null; });
    grip.addEventListener('keydown', event => {
      const by = {ArrowLeft: [true, -1], ArrowRight: [true, 1], ArrowUp: [false, -1], ArrowDown: [false, 1]}[event.key];
      if (!by || by[0] !== across) return;
      event.preventDefault();
      set(this.extend[side] + sign * by[1] * this.stride);
    });
    return grip;
  }

  draw() {
    let last = null;
    const at = event => {
      const box = this.mask.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * this.width, (event.clientY - box.top) / box.height * this.height];
    };
    const line = (from, to) => {
      const context = this.mask.getContext('2d');
      Object.assign(context, {lineCap: 'round', lineJoin: 'round', strokeStyle: COLOUR,
        lineWidth: Math.max(1, Number(this.brush.value) / 100 * Math.max(this.width, this.height)),
        globalCompositeOperation: this.erase.checked ? 'destination-out' : 'source-over'});
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(to[0] + .01, to[1]);
      context.stroke();
    };
    this.mask.addEventListener('pointerdown', event => {
      this.mask.setPointerCapture(event.pointerId);
      this.keep();
      last = at(event);
      line(last, last);
    });
    this.mask.addEventListener('pointermove', event => {
      if (!last) return;
      const now = at(event);
      line(last, now);
      last = now;
    });
    for (const name of ['pointerup', 'pointercancel']) {
      this.mask.addEventListener(name, () => {
        if (!last) return;
        last = null;
        this.changed();
      });
    }
  }

  covered() { return this.mask.getContext('2d').getImageData(0, 0, this.width, this.height).data; }

  // White where the image is to be filled, in base64.
  async maskText() {
    const canvas = element('canvas', {width: this.width, height: this.height});
    const context = canvas.getContext('2d');
    const made = context.createImageData(this.width, this.height);
    const covered = this.covered();
    for (let place = 0; place < covered.length; place += 4) {
      made.data.fill(covered[place + 3] >= 128 ? 255 : 0, place, place + 3);
      made.data[place + 3] = 255;
    }
    context.putImageData(made, 0, 0);
    return asText(await new Promise(done => canvas.toBlob(done, 'image/png')));
  }

  imageText() { return asText(this.blob); }
}

async function asText(blob) {
  const reader = new FileReader();
  const read = new Promise((done, failed) => { reader.onload = done; reader.onerror = failed; });
  reader.readAsDataURL(blob);
  await read;
  return reader.result.split(',')[1];
}
