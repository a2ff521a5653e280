// New pictures by one model, or by several side by side from the same seeds.

import {request} from './ask.js';
import {Earlier} from './earlier.js';
import {Choice, ConditionsField, GuidanceFields, OtherFields, ViewFields, field, fillClasses, more, nameOf, noModel, seedInput, slider, usableRuns} from './models.js';
import {element, empty, quoted, trouble} from './page.js';
import {Results} from './results.js';
import {Settings} from './settings.js';

const MOST_MODELS = 4;
const SOLVERS = {heun: 'Heun', dpm_solver_2m: 'DPM-Solver++ 2M', dpm_solver_3m: 'DPM-Solver++ 3M', unipc: 'UniPC', euler: 'Euler',
  stochastic_heun: 'Heun, stochastic', ancestral: 'ancestral', consistency: 'consistency, for tuned runs'};

export async function showGenerate(place, values, signal) {
  document.title = 'Generate – patch diffusion';
  place.append(element('h1', {}, 'Generate'), element('p', {className: 'soft'}, 'Make new pictures with a model that you have trained.'));
  const found = await usableRuns(signal), {runs} = found;
  if (!runs.length) {
    place.append(noModel(found));
    return;
  }
  const choices = [];
  const models = element('fieldset', {className: 'models'}, element('legend', {}, 'Model'));
  const beside = element('button', {className: 'small', type: 'button', onclick: compare}, 'Compare with another model');
  const seed = seedInput();
  const pictures = element('input', {type: 'number', min: 1, max: 64, step: 1, value: 16, name: 'pictures', required: true});
  const label = element('select', {name: 'class'});
  const conditions = new ConditionsField();
  const steps = slider('Steps', 'Each step removes some noise. More take longer.', {min: 1, max: 100, step: 1, value: 18, name: 'steps'});
  steps.input.addEventListener('input', () => suit());
  const solver = element('select', {name: 'solver', onchange: () => suit()}, ...Object.entries(SOLVERS).map(([value, text]) => element('option', {value}, text)));
  const guidance = new GuidanceFields();
  const view = new ViewFields();
  const others = await OtherFields.of(signal);
  const go = element('button', {className: 'main'}, 'Generate');
  const first = quoted(`${found.folder}/${values.get('run') ?? runs[0].name}`);
  const results = element('div', {}, empty('Press Generate: pictures appear here, step by step. The same from the command line:',
    `patch-diffusion sample ${first} --seeds 0-15 --out pictures`));
  const form = element('form', {onsubmit: event => { event.preventDefault(); make(); }},
    element('div', {className: 'box'}, models, element('div', {}, beside)),
    element('div', {className: 'box'}, element('div', {className: 'pair'}, field('Seed', seed, 'the same seed, the same picture'), field('Pictures', pictures, 'how many; seeds count up')),
      field('Class', label, 'What the pictures show.'), conditions.label, steps.label, field('Solver', solver, 'How noise is removed: Heun for 12 steps or more, DPM-Solver++ 2M for few.'),
      ...guidance.fields, more('Size and tiles', ...view.fields), others.fold), go);
  const earlier = new Earlier(({models, pictures, job}) => showing(models, pictures).follow(job, signal));
  place.append(element('div', {className: 'work'}, form, element('div', {}, results, earlier.element)));
  let settings = null, tuned = null;  // the number of steps that the models are tuned for
  add();
  settings = new Settings(form);
  while (choices.length < Math.min(values.getAll('run').length, MOST_MODELS)) add();
  settings.fill(values);
  await earlier.look(signal);

  function add(chosen) {
    const choice = new Choice(runs, chosen, {onchange: suit, onremove: choices.length ? remove : null});
    choices.push(choice);
    models.append(choice.row);
    suit();
    return choice;
  }

  // With the same run two checkpoints earlier, where there are as many.
  function compare() {
    const {checkpoint} = add(choices.at(-1).asked);
    if (checkpoint.options.length > 2) checkpoint.selectedIndex = Math.min(checkpoint.selectedIndex + 2, checkpoint.options.length - 1);
    suit();
  }

  function remove(choice) {
    choices.splice(choices.indexOf(choice), 1);
    choice.row.remove();
    suit();
  }

  function usualSolver() {
    return tuned === null ? 'heun' : 'consistency';
  }

  function suit() {
    beside.hidden = choices.length >= MOST_MODELS;
    const found = choices.map(choice => choice.model);
    const fewest = found.reduce((a, b) => b.classes < a.classes ? b : a);
    fillClasses(label, fewest, 'all, in turn');
    conditions.suit(found);
    guidance.suit(choices);
    view.suit(found);
    const own = found.every(model => model.few_steps === found[0].few_steps) ? found[0].few_steps : null;
    if (own !== tuned) {
      tuned = own;  // first, as the event below comes back here
      solver.value = usualSolver();
      steps.input.value = own ?? 18;
      steps.input.dispatchEvent(new Event('input'));
    }
    const few = solver.value.includes('heun') && steps.input.value > 1 && steps.input.value < 5;  // specks
    solver.parentElement.lastChild.classList.toggle('warning', few);
    settings?.write();
  }

  function showing(models, pictures) {
    const names = models.map(nameOf);
    const editable = models.every(({run}) => runs.find(({name}) => name === run)?.model.editable);
    return new Results(results, names, pictures, editable ? {onedit: (name, source) => {
      const {run, checkpoint, ema_length: average} = models[names.indexOf(name)];
      sessionStorage.setItem('edit', source);
      location.hash = `#/edit?${new URLSearchParams({run, checkpoint: checkpoint ?? '', average: average ?? ''})}`;
    }} : {});
  }

  async function make() {
    go.disabled = true;
    const wanted = {models: choices.map(choice => choice.asked), seed: Number(seed.value), pictures: Number(pictures.value),
      label: label.value === '' ? null : Number(label.value), steps: Number(steps.input.value), solver: solver.value === usualSolver() ? null : solver.value,
      ...conditions.asked, ...guidance.asked, resolution: view.resolution, ...view.asked, ...others.asked};
    const shown = showing(wanted.models, wanted.pictures);
    results.scrollIntoView({block: 'nearest'});
    try {
      const {job} = await request('api/generate', wanted);
      await shown.follow(job, signal);
      await earlier.look(signal, job);
    } catch (error) {
      results.replaceChildren(trouble(error));
    }
    go.disabled = false;
    shown.giveFocus(go);
  }
}
