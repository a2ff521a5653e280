// The choice of models: a run and one of its checkpoints, and what a form needs to know of them.

import {ask} from './ask.js';
import {element, empty, quoted} from './page.js';

export async function usableRuns(signal) {
  const {folder, runs} = await ask('api/runs', {}, signal);
  return {folder, all: runs, runs: runs.filter(run => run.has_model)};
}

// What to do where there is no run: train on images of one's own, or on those that come with the package.
export const howToTrain = (words, folder) => empty(words,
  `patch-diffusion train photos/ --resolution 64 --out ${quoted(`${folder}/photos`)}`,
  `patch-diffusion train digits --preset digits --out ${quoted(`${folder}/digits`)}`);

export const noModel = ({folder, all}) => howToTrain(all.length
  ? `No run in ${folder} has a model yet. A run has one from its first checkpoint on: look at its progress under Runs. To train another, on your images or on the built-in digits:`
  : `There is no run in ${folder} yet. Train one, on your images or on the built-in digits, and it appears here:`, folder);

export class Choice {
  constructor(runs, chosen = {}, {onchange, onremove} = {}) {
    this.runs = runs;
    this.run = element('select', {name: 'run', onchange: () => { this.fill(); onchange?.(); }},
      ...runs.map(run => element('option', {value: run.name}, run.name)));
    if (runs.some(run => run.name === chosen.run)) this.run.value = chosen.run;
    this.checkpoint = element('select', {name: 'checkpoint', onchange: () => onchange?.()});
    this.average = element('input', {type: 'number', name: 'average', min: 0, max: .289, step: 'any', placeholder: 'default', oninput: () => onchange?.()});
    this.averageLabel = field('EMA length', this.average, 'Share of the training that the weights are averaged over, such as 0.1.');
    this.averageLabel.style.gridColumn = '1 / 3';
    this.fill();
    if (chosen.checkpoint) this.checkpoint.value = chosen.checkpoint;
    if (chosen.ema_length) this.average.value = chosen.ema_length;
    this.row = element('div', {className: 'pair', role: 'group', 'aria-label': 'model'}, field('Run', this.run, 'which training'),
      field('Checkpoint', this.checkpoint, 'at which step of it'), onremove ? element('button', {className: 'plain', type: 'button', 'aria-label': 'remove this model', onclick: () => onremove(this)}, '✕') : null, this.averageLabel);
    if (!onremove) this.row.style.gridTemplateColumns = '1fr 1fr';
  }

  fill() {
    const {checkpoints, best} = this.found;
    this.averageLabel.hidden = !this.model.ema_lengths.length;
    if (this.averageLabel.hidden) this.average.value = '';
    this.checkpoint.replaceChildren(element('option', {value: ''}, 'newest'),
      ...[...checkpoints].reverse().map(step => element('option', {value: step}, `step ${step.toLocaleString('en')}${step === best ? ', best' : ''}`)));
  }

  get found() { return this.runs.find(run => run.name === this.run.value); }
  get model() { return this.found.model; }
  get step() { return this.checkpoint.value ? Number(this.checkpoint.value) : null; }
  get asked() { return {run: this.run.value, checkpoint: this.step, ema_length: numberOf(this.average)}; }
  get name() { return nameOf(this.asked); }
}

// A model that was asked for, in words.
export function nameOf({run, checkpoint, ema_length: average}) {
  const step = checkpoint === null ? '' : `, step ${checkpoint.toLocaleString('en')}`;
  return `${run}${step}${average === null ? '' : `, average ${average}`}`;
}

// What stands in a field, null where nothing does.
export const numberOf = input => input.value === '' ? null : Number(input.value);

// A select of classes, filled anew for each model.
export function fillClasses(select, model, none) {
  const before = select.value;
  const names = Array.from({length: model.classes}, (_, index) => model.class_names[index] ?? `${index}`);
  select.replaceChildren(element('option', {value: ''}, none), ...names.map((name, index) => element('option', {value: index}, name)));
  if (before !== '' && before < model.classes) select.value = before;
  select.parentElement.hidden = !model.classes;
}

// Values of a model's conditions as text, such as age=40 colour=red, with what they can be as its hint.
export class ConditionsField {
  constructor() {
    this.input = element('input', {type: 'text', name: 'conditions', autocomplete: 'off', spellcheck: false});
    this.label = field('Conditions', this.input, ' ');
  }

  suit(models) {
    const told = models.reduce((all, {conditions}) => ({...all, ...conditions}), {});
    this.label.hidden = !Object.keys(told).length;
    this.label.lastChild.textContent = `As in name=value, with spaces between: ${Object.entries(told).map(([name, of]) => `${name} (${of})`).join(', ')}.`;
  }

  get asked() {
    const words = this.label.hidden ? [] : this.input.value.trim().split(/\s+(?=[^\s=]+=)/).filter(Boolean);
    return {conditions: Object.fromEntries(words.map(word => [word.split('=', 1)[0], word.slice(word.indexOf('=') + 1)]))};
  }
}

let fields = 0;

// An input with its label, and a hint of what it does; it is the parent of the input.
export function field(text, input, hint = '') {
  input.id ||= `field-${++fields}`;
  const told = hint && element('small', {id: `${input.id}-hint`}, hint);
  if (told) input.setAttribute('aria-describedby', told.id);
  return element('div', {className: 'field'}, element('label', {htmlFor: input.id}, text), input, told);
}

// A field with a slider that says its value.
export function slider(text, hint, values, show = value => value) {
  const output = element('output');
  const tell = () => { output.textContent = show(input.value); input.setAttribute('aria-valuetext', output.textContent); };
  const input = element('input', {type: 'range', ...values, value: values.value, oninput: tell});
  tell();
  const label = field(text, input, hint);
  label.firstChild.after(output);
  return {label, input};
}

// Of the first seed: the last of 64 is still a number that JavaScript holds exactly. Larger ones are for the command line.
export const seedInput = () => element('input', {type: 'number', min: 0, max: 2 ** 53 - 64, step: 1, value: 0, name: 'seed', required: true});

// What guidance models can be given: what it leads away from, how far, and at which noise levels.
export class GuidanceFields {
  constructor() {
    this.guide = element('select', {name: 'guide'});
    const scale = slider('Guidance', 'Clearer pictures with less variety. Begin with 1.5 or 2.', {min: 1, max: 4, step: .1, value: 1, name: 'guidance'}, value => value === '1' ? 'none' : Number(value).toFixed(1));
    scale.input.addEventListener('input', () => this.show());
    this.scale = scale.input;
    this.guideLabel = field('Guide away from', this.guide, 'The weaker model that guidance moves away from.');
    [this.low, this.high] = ['low', 'high'].map(name => element('input', {type: 'number', name, min: 0, step: 'any', placeholder: name === 'low' ? '0' : 'all'}));
    this.interval = element('div', {className: 'pair'}, field('Guide above noise', this.low, 'lowest noise level'), field('up to noise', this.high, 'highest noise level'));
    this.fields = [scale.label, this.guideLabel, this.interval];
    this.show();
  }

  get used() { return this.scale.value !== '1'; }

  // What is hidden is disabled, or a wrong value there would keep the form from being sent without a word.
  show() {
    this.guideLabel.hidden = this.interval.hidden = !this.used;
    for (const input of [this.guide, this.low, this.high]) input.disabled = !this.used;
  }

  // choices: of the models; labelled: whether they are told a class.
  suit(choices, labelled = true) {
    const byClass = choices.every(({model}) => (labelled && model.classes && model.classless) || Object.keys(model.conditions).length);
    // A model is led away from an earlier one of the same run: steps that all have.
    const earlier = choices.map(({found, step}) => found.checkpoints.filter(each => each < (step ?? found.step)));
    const steps = earlier[0].filter(step => earlier.every(each => each.includes(step)));
    const before = this.guide.value;
    const guides = [...(byClass ? [['class', 'the model without class and conditions']] : []), ['crops', 'the model on crops, half the sides'], ['crops:1/4', 'the model on crops, a quarter'],
      ...steps.map(step => [`step:${step}`, `the checkpoint of step ${step.toLocaleString('en')}`])];
    this.guide.replaceChildren(...guides.map(([value, text]) => element('option', {value}, text)));
    if (guides.some(([value]) => value === before)) this.guide.value = before;
  }

  get asked() {
    if (!this.used) return {};
    const bounded = this.low.value !== '' || this.high.value !== '';
    return {guidance: Number(this.scale.value), guide: this.guide.value,
      guidance_interval: bounded ? [numberOf(this.low) ?? 0, numberOf(this.high) ?? 10000] : null};
  }
}

// How a model is shown an image: its size, its coordinates, and in tiles or not.
export class ViewFields {
  constructor() {
    const side = (name, least) => element('input', {type: 'number', name, min: least, step: 1, placeholder: name === 'tile' ? 'none' : ''});
    [this.height, this.width, this.tile, this.overlap] = [side('height', 1), side('width', 1), side('tile', 1), side('overlap', 0)];
    this.coords = element('select', {name: 'coords'}, ...[['', 'automatic'], ['stretch', 'stretch: over the whole picture'],
      ['extend', 'extend: on beyond the edges'], ['repeat', 'repeat: anew in each tile']].map(([value, text]) => element('option', {value}, text)));
    this.size = element('div', {className: 'pair'}, field('Height', this.height, 'pixels'), field('Width', this.width, 'pixels'));
    this.coordsLabel = field('Coordinates', this.coords, 'What the network is told of places, in a picture of another size than in training.');
    this.overlap.placeholder = 'a quarter';
    this.tiles = element('div', {className: 'pair'}, field('Tile', this.tile, 'side in pixels, to save memory'), field('Overlap', this.overlap, 'pixels between tiles'));
    this.fields = [this.size, this.coordsLabel, this.tiles];
  }

  suit(models) {
    [this.height.placeholder, this.width.placeholder] = models[0].resolution;
    this.coordsLabel.hidden = !models.every(model => model.coords);
    if (this.coordsLabel.hidden) this.coords.value = '';
  }

  // Of new pictures; one side alone is that of a square.
  get resolution() {
    const [height, width] = [numberOf(this.height), numberOf(this.width)];
    return height === null && width === null ? null : [height ?? width, width ?? height];
  }

  get asked() { return {coords: this.coords.value || null, tile: numberOf(this.tile), overlap: numberOf(this.overlap)}; }
}

// The options of sampling that a form has no input for: one each, as the server's schema describes them.
export class OtherFields {
  static async of(signal, names = null) {
    const {properties} = await ask('api/options', {}, signal);
    return new OtherFields(Object.entries(properties).filter(([name]) => names ? names.includes(name) : !FORMED.includes(name)));
  }

  constructor(options) {
    this.inputs = options.map(([name, {enum: words, type, default: usual}]) => words
      ? element('select', {name}, ...(usual === null ? [element('option', {value: ''}, 'default')] : []), ...words.map(value => element('option', {value}, value)))
      : type === 'boolean' ? element('input', {type: 'checkbox', name})
      : element('input', {type: 'number', name, step: 'any', placeholder: 'default'}));
    const named = name => name[0].toUpperCase() + name.slice(1).replace('_', ' ');
    this.fold = more('Noise schedule and solver', ...options.map(([name, {description}], index) => field(named(name), this.inputs[index], description.replace('None:', 'Empty:'))));
  }

  get asked() {
    const values = this.inputs.map(input => [input.name, {number: Number(input.value), checkbox: input.checked}[input.type] ?? input.value]);
    return Object.fromEntries(values.filter((_, index) => this.inputs[index].value !== ''));
  }
}

const FORMED = ['steps', 'solver', 'guidance', 'guide', 'guidance_interval', 'resolution', 'coords', 'tile', 'overlap', 'batch'];

export const more = (name, ...fields) => element('details', {className: 'more'}, element('summary', {}, name), ...fields);
