// Pictures while they are made and when they are there: a canvas each, a slider over the steps, what made them.

import {address, follow, stop} from './ask.js';
import {command, digits, element, loaded, trouble} from './page.js';

const file = (job, name, more = {}) => address('api/file', {job, name, ...more});

export class Results {
  // place: where they are shown; names: of the models, a column each; pictures: of each model.
  constructor(place, names, pictures, {onedit} = {}) {
    this.onedit = onedit;
    this.columns = names.map(name => ({name, sheets: [], samples: [], shots: []}));
    this.pictures = pictures;
    this.steps = 0;
    this.status = element('span', {role: 'status'}, 'asked for');
    this.bar = element('div');
    this.stopping = element('button', {className: 'small', type: 'button', onclick: () => this.stop()}, 'Stop');
    this.meter = element('div', {className: 'meter', role: 'progressbar', 'aria-label': 'progress'}, this.bar);
    this.progress = element('div', {className: 'progress'},
      element('div', {className: 'row'}, element('small', {}, this.status), this.stopping), this.meter);
    this.bar.style.width = '0';
    this.slider = element('input', {type: 'range', min: 1, max: 1, value: 1, disabled: true, 'aria-label': 'step', oninput: () => this.look()});
    this.at = element('span', {}, 'no step yet');
    const side = pictures === 1 ? '100%' : names.length > 2 ? '64px' : names.length > 1 || pictures > 16 ? '84px' : '120px';
    this.grid = element('div', {className: 'columns'}, ...this.columns.map(column => this.column(column, side)));
    this.grid.style.setProperty('--columns', names.length);
    this.after = element('div', {className: 'made-by'});
    place.replaceChildren(this.progress, element('div', {className: 'scrub'}, this.slider, this.at), this.grid, this.after);
    this.place = place;
    this.dialog = element('dialog', {className: 'viewer', 'aria-label': 'picture', onclick: event => { if (event.target === this.dialog) this.dialog.close(); }});
    place.append(this.dialog);
  }

  column(column, side) {
    column.shots = Array.from({length: this.pictures}, (_, index) => {
      const canvas = element('canvas', {width: 1, height: 1});
      const text = element('span');
      const button = element('button', {type: 'button', className: 'picture', disabled: true, 'aria-label': `picture ${index + 1}, not made yet`,
        onclick: () => this.open(column, index)}, canvas, text);
      return {canvas, text, button};
    });
    const pictures = element('div', {className: 'pictures'}, ...column.shots.map(shot => shot.button));
    pictures.style.setProperty('--side', side);
    if (this.pictures === 1) pictures.style.maxWidth = '360px';
    column.settings = element('small');
    return element('section', {className: 'column'}, element('h2', {}, column.name), pictures);
  }

  async follow(job, signal) {
    this.job = job;
    let drawing = Promise.resolve();
    try {
      await follow(job, news => {
        for (const event of news.events) drawing = drawing.then(() => this.take(event)).catch(() => {});
        const waiting = news.ahead === 1 ? 'one request' : `${news.ahead} requests`;
        if (news.state === 'waiting') this.status.textContent = news.ahead ? `waiting for ${waiting}` : 'waiting';
        if (news.state === 'failed') this.failed = new Error(news.reason);
        this.state = news.state;
        this.reason = news.reason;
      }, signal);
      await drawing;
    } catch (error) {
      if (signal.aborted) return;
      this.failed = error;
      this.state = 'failed';
    }
    this.end();
  }

  async stop() {
    this.stopping.disabled = true;
    await stop(this.job).catch(() => {});
  }

  async take(event) {
    if (event.event === 'note') return this.progress.append(element('p', {className: 'soft', role: 'status'}, event.text));
    const column = this.columns[event.model];
    const whose = this.columns.length > 1 ? `${column.name}: ` : '';
    if (event.event === 'loading') this.status.textContent = `${whose}loading the model`;
    if (event.event === 'step') {
      const image = await loaded(file(this.job, event.sheet));
      (column.sheets[event.step] ??= []).push({...event, image});
      this.steps = event.steps;
      this.slider.max = event.steps;
      const part = (event.first + event.num * event.step / event.steps) / this.pictures;
      const percent = Math.round(100 * (event.model + part) / this.columns.length);
      this.bar.style.width = `${percent}%`;
      this.meter.setAttribute('aria-valuenow', percent);
      this.status.textContent = `${whose}step ${event.step} of ${event.steps}`
        + (event.num < this.pictures ? `, pictures ${event.first + 1} to ${event.first + event.num} of ${this.pictures}` : '');
      if (!this.held) { this.slider.value = event.step; this.draw(event, image, column); this.tellStep(event.step, event.sigma); }
      this.slider.disabled = false;
    }
    if (event.event === 'sample') {
      const image = await loaded(file(this.job, event.shown));
      column.samples[event.index] = {...event, image};
      const shot = column.shots[event.index];
      shot.button.disabled = false;
      shot.text.textContent = `seed ${event.seed}${event.label === null ? '' : `, ${event.label}`}`;
      shot.button.setAttribute('aria-label', `${column.name}, ${shot.text.textContent}`);
      if (!this.held) paint(shot.canvas, image, 0, 0, image.width, image.height);
    }
    if (event.event === 'finished') column.made = event;
  }

  draw(event, image, column) {
    const [height, width] = event.size;
    for (let index = 0; index < event.num; index++) {
      const x = index % event.columns * width, y = Math.floor(index / event.columns) * height;
      paint(column.shots[event.first + index].canvas, image, x, y, width, height);
    }
  }

  // The step under the slider; at its end the pictures themselves.
  look() {
    const step = Number(this.slider.value);
    this.held = step < this.steps;
    let sigma = null;
    for (const column of this.columns) {
      for (const event of column.sheets[step] ?? []) { this.draw(event, event.image, column); sigma = event.sigma; }
      if (!this.held) column.samples.forEach(({image}, index) => paint(column.shots[index].canvas, image, 0, 0, image.width, image.height));
    }
    this.tellStep(step, sigma);
  }

  tellStep(step, sigma) {
    this.at.textContent = `step ${step} of ${this.steps}${sigma === null ? '' : `, noise ${digits(sigma)}`}`;
  }

  // What has lost the focus when it went away or could not be used gives it to another.
  giveFocus(other) { if (document.activeElement === document.body) other.focus({preventScroll: true}); }

  end() {
    this.stopping.remove();
    this.meter.hidden = this.state === 'done';
    const num = this.columns.reduce((sum, column) => sum + column.samples.length, 0);
    this.status.textContent = this.state === 'stopped' && this.reason ? `stopped: ${this.reason}`
      : this.state === 'done' ? `${num} ${num === 1 ? 'picture is' : 'pictures are'} ready` : this.state;
    const made = this.columns.filter(column => column.made);
    const any = this.columns.some(column => column.samples.length);
    this.after.replaceChildren(
      this.failed ? trouble(this.failed) : '',
      any ? element('div', {className: 'after'},
        element('a', {className: 'button', href: file(this.job, 'pictures.zip', {save: 1}), download: 'pictures.zip'}, 'Download all, with settings')) : '',
      ...made.length ? [element('small', {}, 'The same from the command line')] : [],
      ...made.map(column => command(column.made.command)));
  }

  open(column, index) {
    const sample = column.samples[index];
    const canvas = element('canvas', {role: 'img', 'aria-label': column.shots[index].button.getAttribute('aria-label')});
    paint(canvas, sample.image, 0, 0, sample.image.width, sample.image.height);
    const settings = {model: column.name, seed: sample.seed, ...sample.label === null ? {} : {class: sample.label}, ...column.made?.settings};
    const text = value => Array.isArray(value) ? value.join(' × ') : typeof value === 'object' ? Object.entries(value).map(pair => pair.join(' ')).join(', ')
      : typeof value === 'number' && !Number.isInteger(value) ? digits5(value) : String(value);  // seeds and sizes are exact
    const rows = Object.entries(settings).map(([name, value]) => element('tr', {}, element('th', {}, name), element('td', {}, text(value))));
    const blob = new Blob([JSON.stringify(settings, null, 1)], {type: 'application/json'});
    const stem = sample.file.split('/').at(-1).replace(/\.\w+$/, '');
    const link = URL.createObjectURL(blob);
    this.dialog.replaceChildren(
      element('div', {className: 'head'}, element('b', {}, column.shots[index].text.textContent),
        element('button', {className: 'plain', type: 'button', onclick: () => this.dialog.close()}, 'Close')),
      element('div', {className: 'sides'}, canvas, element('div', {}, element('table', {}, element('tbody', {}, ...rows)),
      element('div', {className: 'row'},
        element('a', {className: 'button small', href: file(this.job, sample.file, {save: 1}), download: sample.file.split('/').at(-1)}, 'Download'),
        element('a', {className: 'button small', href: link, download: `${stem}.json`}, 'Settings'),
        this.onedit ? element('button', {className: 'small', type: 'button', onclick: () => { this.dialog.close(); this.onedit(column.name, file(this.job, sample.shown)); }}, 'Edit this picture') : ''))));
    this.dialog.addEventListener('close', () => URL.revokeObjectURL(link), {once: true});
    this.dialog.showModal();
  }
}

const digits5 = value => Number(value.toPrecision(5)).toString();

function paint(canvas, image, x, y, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  canvas.style.imageRendering = Math.max(width, height) < 128 ? 'pixelated' : 'auto';  // small ones have hard pixels
  const context = canvas.getContext('2d');
  context.clearRect(0, 0, width, height);
  context.drawImage(image, x, y, width, height, 0, 0, width, height);
}
