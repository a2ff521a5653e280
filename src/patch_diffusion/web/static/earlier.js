// What was made before, by this page or another: the server keeps the newest, to be shown again.

import {address, ask} from './ask.js';
import {nameOf} from './models.js';
import {ago, digits, element} from './page.js';

export class Earlier {
  // onshow: called with a request that is to be shown again.
  constructor(onshow) {
    this.onshow = onshow;
    this.element = element('section', {hidden: true});
  }

  // shown: the request that is shown already, if there is one.
  async look(signal, shown = '') {
    const made = (await ask('api/jobs', {}, signal)).jobs.filter(({job}) => job !== shown);
    this.element.hidden = !made.length;
    this.element.replaceChildren(element('h2', {}, 'Earlier results'), element('div', {className: 'made'}, ...made.map(each => this.entry(each))));
  }

  entry(each) {
    const {job, models, edited, seed, made, shown, settings: [settings], asked_at: time} = each;
    const num = Math.ceil(made / models.length);
    const seeds = num > 1 ? `seeds ${seed} to ${seed + num - 1}` : `seed ${seed}`;
    const how = settings ? [`${settings.steps} ${settings.steps === 1 ? 'step' : 'steps'}`, ...settings.guidance === 1 ? [] : [`guidance ${digits(settings.guidance)}`]] : [];
    const show = () => { this.onshow(each); this.look(undefined, job).catch(() => {}); };
    return element('button', {type: 'button', onclick: show},
      element('span', {className: 'row'}, ...shown.map(name => element('img', {src: address('api/file', {job, name}), alt: '', loading: 'lazy'}))),
      element('span', {}, models.map(nameOf).join(' and ')),
      element('small', {}, [...edited ? ['edited'] : [], seeds, ...how, ago(time)].join(', ')));
  }
}
