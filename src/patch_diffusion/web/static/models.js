// The choice of models: a run and one of its checkpoints, and what a form needs to know of them.

import {ask} from './ask.js';
import {element} from './page.js';

export async function usableRuns(signal) {
  const {folder, runs} = await ask('api/runs', {}, signal);
  return {folder, runs: runs.filter(run => run.has_model)};
}

export class Choice {
  constructor(runs, chosen = {}, {onchange, onremove} = {}) {
    this.runs = runs;
    this.run = element('select', {'aria-label': 'run', onchange: () => { this.fill(); onchange?.(); }},
      ...runs.map(run => element('option', {value: run.name}, run.name)));
    if (runs.some(run => run.name === chosen.run)) this.run.value = chosen.run;
    this.checkpoint = element('select', {'aria-label': 'checkpoint', onchange: () => onchange?.()});
    this.fill();
    if (chosen.checkpoint) this.checkpoint.value = chosen.checkpoint;
    this.row = element('div', {className: 'pair'}, element('label', {}, 'Run', this.run), element('label', {}, 'Weights', this.checkpoint),
      onremove ? element('button', {className: 'plain', type: 'button', 'aria-label': 'remove this model', onclick: () => onremove(this)}, '✕') : null);
    if (!onremove) this.row.style.gridTemplateColumns = '1fr 1fr';
  }

  fill() {
    const {checkpoints, best} = this.found;
    this.checkpoint.replaceChildren(element('option', {value: ''}, 'newest'),
      ...[...checkpoints].reverse().map(step => element('option', {value: step}, `step ${step.toLocaleString('en')}${step === best ? ', best' : ''}`)));
  }

  get found() { return this.runs.find(run => run.name === this.run.value); }
  get model() { return this.found.model; }
  get asked() { return {run: this.run.value, checkpoint: this.checkpoint.value ? Number(this.checkpoint.value) : null}; }
  get name() { return `${this.run.value}${this.checkpoint.value ? `, step ${Number(this.checkpoint.value).toLocaleString('en')}` : ''}`; }
}

// A select of classes, filled anew for each model.
export function fillClasses(select, model, none) {
  const before = select.value;
  const names = Array.from({length: model.classes}, (_, index) => model.class_names[index] ?? `${index}`);
  select.replaceChildren(element('option', {value: ''}, none), ...names.map((name, index) => element('option', {value: index}, name)));
  if (before !== '' && before < model.classes) select.value = before;
  select.parentElement.hidden = !model.classes;
}

// A label with a slider that says its value.
export function slider(text, values, show = value => value) {
  const output = element('output');
  const input = element('input', {type: 'range', ...values, value: values.value, oninput: () => { output.textContent = show(input.value); }});
  output.textContent = show(input.value);
  return {label: element('label', {}, element('span', {}, text, output), input), input};
}

export const field = (text, input) => element('label', {}, text, input);

// What guidance a model can be given; the choice and its strength.
export class GuidanceFields {
  constructor() {
    this.guide = element('select', {}, element('option', {value: 'class'}, 'the class'), element('option', {value: 'crops'}, 'crops of the image'));
    const scale = slider('Guidance', {min: 1, max: 4, step: .1, value: 1}, value => value === '1' ? 'none' : Number(value).toFixed(1));
    scale.input.addEventListener('input', () => this.show());
    this.scale = scale.input;
    this.guideLabel = field('Guided by', this.guide);
    this.fields = [scale.label, this.guideLabel];
    this.show();
  }

  show() { this.guideLabel.hidden = this.scale.value === '1'; }

  suit(models, labelled = true) {
    const byClass = labelled && models.every(model => model.classes && model.classless);
    this.guide.options[0].disabled = !byClass;
    if (!byClass) this.guide.value = 'crops';
  }

  get asked() { return {guidance: Number(this.scale.value), guide: this.guide.value}; }
}
