// An image that is filled in where a mask is drawn and extended where an edge is dragged, or restored.

import {address, fetched, follow, request, send} from './ask.js';
import {Earlier} from './earlier.js';
import {Choice, GuidanceFields, OtherFields, ViewFields, field, fillClasses, more, nameOf, numberOf, seedInput, slider, usableRuns} from './models.js';
import {element, trouble} from './page.js';
import {Results} from './results.js';
import {Settings} from './settings.js';
import {Stage} from './stage.js';

// What can be done, in which words, and with which fields.
const TASKS = {
  '': {text: 'Fill in or extend', fields: []},
  'super-resolution': {text: 'Enlarge', fields: ['factor', 'noise']},
  deblur: {text: 'Sharpen a blurred image', fields: ['blur', 'noise']},
  denoise: {text: 'Take away noise', fields: ['noise']},
};

export async function showEdit(place, values, signal) {
  document.title = 'Edit – patch diffusion';
  place.append(element('h1', {}, 'Edit'));
  const runs = (await usableRuns(signal)).runs.filter(run => run.model.editable);
  if (!runs.length) {
    place.append(element('div', {className: 'empty'}, 'There is no trained model of pictures (8 bits, grey, RGB or RGBA) yet.'));
    return;
  }
  const choice = new Choice(runs, {}, {onchange: suit});
  const seed = seedInput();
  const pictures = element('input', {type: 'number', min: 1, max: 64, step: 1, value: 4, name: 'pictures', required: true});
  const label = element('select', {name: 'class'});
  label.addEventListener('change', suit);
  const steps = slider('Steps', {min: 1, max: 100, step: 1, value: 32, name: 'steps'});
  const task = element('select', {name: 'task', onchange: () => { stage?.clear(); suit(); }},
    ...Object.entries(TASKS).map(([value, {text}]) => element('option', {value}, text)));
  const told = {factor: ['Times the sides', {min: 2, step: 1, value: 2}], blur: ['Deviation of the blur, pixels', {min: 0, step: 'any', value: 1}],
    noise: ['Deviation of the noise, of 255', {min: 0, step: 'any', value: ''}]};
  for (const [name, [text, values]] of Object.entries(told)) {
    told[name] = element('input', {type: 'number', name, ...values, oninput: suit});
    field(text, told[name]);
  }
  const way = element('select', {name: 'way'}, ...[['', 'what suits'], ['network', 'careful'], ['isotropic', 'quick']]
    .map(([value, text]) => element('option', {value}, text)));
  const guidance = new GuidanceFields();
  const view = new ViewFields();
  const others = await OtherFields.of(signal, ['sigma_min', 'sigma_max', 'rho']);  // editing has its own solver
  view.size.hidden = true;  // it follows from the image
  const size = element('select', {name: 'size'}, element('option', {value: 'run'}, 'that of the run’s images'),
    element('option', {value: 'own'}, 'as it is'));
  const go = element('button', {className: 'main', disabled: true}, 'Fill in');
  const hint = element('small');
  const form = element('form', {onsubmit: event => { event.preventDefault(); make(); }},
    element('div', {className: 'box'}, choice.row),
    element('div', {className: 'box'}, field('What to do', task), ...Object.values(told).map(input => input.parentElement)),
    element('div', {className: 'box'}, element('div', {className: 'pair'}, field('First seed', seed), field('Pictures', pictures)),
      field('Class', label), steps.label, ...guidance.fields, more(guidance.interval, field('Way', way), ...view.fields), others.fold), go, hint);
  const problem = element('div');
  const table = element('div');
  const results = element('div');
  const onedit = (name, source) => take(() => fetched(source), 'own');
  const showing = (models, pictures) => new Results(results, models.map(nameOf), pictures, {onedit});
  const earlier = new Earlier(({models, pictures, job}) => showing(models, pictures).follow(job, signal));
  place.append(element('div', {className: 'work'}, form, element('div', {}, problem, table, results, earlier.element)));
  let stage = null, fittedTo = '', fittedAs = 'run', taken = 0;
  let settings = null;
  empty();
  suit();
  settings = new Settings(form);
  settings.fill(values);
  await earlier.look(signal);
  const brought = sessionStorage.getItem('edit');
  sessionStorage.removeItem('edit');
  if (brought) await take(() => fetched(brought), 'own');

  function empty() {
    stage = null;
    const input = element('input', {type: 'file', accept: 'image/*', hidden: true, onchange: () => input.files[0] && take(input.files[0])});
    const drop = element('div', {className: 'drop'}, element('div', {}, 'Drop an image here'),
      element('div', {className: 'row'}, input, element('button', {type: 'button', onclick: () => input.click()}, 'Choose a file'),
        element('button', {type: 'button', onclick: event => sample(event.target)}, 'Begin with a sample')),
      field('Its size', size), element('small', {}, 'It stays on this machine. Brought to the size of the run, it is cropped at its centre.'));
    for (const name of ['dragenter', 'dragover']) drop.addEventListener(name, event => { event.preventDefault(); drop.classList.add('over'); });
    drop.addEventListener('dragleave', () => drop.classList.remove('over'));
    drop.addEventListener('drop', event => {
      event.preventDefault();
      drop.classList.remove('over');
      if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    });
    table.replaceChildren(drop);
  }

  // file: the image, or what fetches it; as: how its size is found, "run" or "own".
  async function take(file, as = size.value) {
    problem.replaceChildren();
    const {run} = choice.asked, {stride} = choice.model, mine = ++taken;
    // Whether this is of no use any more: another image was taken meanwhile, or another run chosen.
    const late = () => mine !== taken || run !== choice.asked.run;
    const again = () => { if (mine === taken && fittedTo !== choice.asked.run) take(file, as); };
    try {
      const fitted = await send('api/fit', {run, size: as}, file instanceof Blob ? file : await file());
      if (late()) return again();
      stage = new Stage(stride, suit);
      [fittedTo, fittedAs] = [run, as];
      stage.tools.append(element('button', {className: 'small', type: 'button', onclick: () => { empty(); suit(); }}, 'Another image'));
      table.replaceChildren(stage.element, stage.tools);
      await stage.show(fitted);
      results.replaceChildren();
    } catch (error) {
      if (late()) return again();
      if (fittedTo !== run) empty();
      problem.replaceChildren(trouble(error));
    }
    suit();
  }

  async function sample(button) {
    Object.assign(button, {disabled: true, textContent: 'Sampling …'});
    try {
      const {job} = await request('api/generate', {models: [choice.asked], pictures: 1, seed: Math.floor(Math.random() * 1e6)});
      let made = null, reason = '';
      await follow(job, news => {
        made = news.events.find(event => event.event === 'sample') ?? made;
        reason = news.reason;
      }, signal);
      if (!made) throw new Error(reason || 'it was stopped');
      await take(() => fetched(address('api/file', {job, name: made.shown})), 'own');
    } catch (error) {
      problem.replaceChildren(trouble(error));
      empty();
    }
  }

  function suit() {
    const {model} = choice;
    if (stage && fittedTo !== choice.asked.run) { take(stage.blob, fittedAs); return; }
    fillClasses(label, model, model.classless ? 'not said' : 'choose one');
    guidance.suit([choice], label.value !== '');
    settings?.write();
    view.suit([model]);
    const {text, fields} = TASKS[task.value];
    for (const [name, input] of Object.entries(told)) input.disabled = input.parentElement.hidden = !fields.includes(name);
    told.noise.placeholder = task.value === 'denoise' ? '' : 'that of rounding';
    const missing = fields.find(name => told[name].value === '' && (name !== 'noise' || task.value === 'denoise'));
    stage?.restoring(task.value !== '');
    const classMissing = model.classes > 0 && !model.classless && label.value === '';
    const asked = stage && (task.value ? !missing : stage.hasMask || stage.extended);
    go.disabled = !asked || classMissing;
    go.textContent = task.value ? text : stage?.extended ? 'Extend' : 'Fill in';
    hint.textContent = !stage ? 'Choose an image first.' : missing ? 'Say how large it is.' : !asked ? 'Draw over what is to be filled, or drag an edge to extend the image.'
      : classMissing ? 'This model has learned images of a class only: say which this image is of.' : '';
  }

  async function make() {
    go.disabled = true;
    problem.replaceChildren();
    const {fields} = TASKS[task.value];
    const restored = {restore: task.value, ...Object.fromEntries(fields.map(name => [name, numberOf(told[name])]))};
    const filled = task.value ? {} : {mask: stage.hasMask ? await stage.maskText() : null,
      extend: stage.extended ? Object.fromEntries(Object.entries(stage.extend).filter(pair => pair[1])) : null};
    const wanted = {model: choice.asked, image: await stage.imageText(), ...(task.value ? restored : filled),
      seed: Number(seed.value), pictures: Number(pictures.value), label: label.value === '' ? null : Number(label.value),
      steps: Number(steps.input.value), covariance: way.value || null, ...guidance.asked, ...view.asked, ...others.asked};
    const shown = showing([wanted.model], wanted.pictures);
    results.scrollIntoView({block: 'nearest'});
    try {
      const {job} = await request('api/edit', wanted);
      await shown.follow(job, signal);
      await earlier.look(signal, job);
    } catch (error) {
      results.replaceChildren(trouble(error));
    }
    suit();
  }
}
