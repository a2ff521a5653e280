// An image that is filled in where a mask is drawn and extended where an edge is dragged, or restored.

import {address, fetched, follow, request, send, sent} from './ask.js';
import {Earlier} from './earlier.js';
import {Choice, ConditionsField, GuidanceFields, OtherFields, ViewFields, field, fillClasses, more, nameOf, noModel, numberOf, seedInput, slider, usableRuns} from './models.js';
import {element, empty, trouble} from './page.js';
import {Results} from './results.js';
import {Settings} from './settings.js';
import {Stage} from './stage.js';

// What can be done, in which words, and with which fields.
const TASKS = {
  '': {text: 'Fill in or extend', fields: []},
  'super-resolution': {text: 'Enlarge', fields: ['factor', 'noise']},
  deblur: {text: 'Sharpen a blurred image', fields: ['blur', 'noise']},
  denoise: {text: 'Remove noise', fields: ['noise']},
};

export async function showEdit(place, values, signal) {
  document.title = 'Edit – patch diffusion';
  place.append(element('h1', {}, 'Edit'), element('p', {className: 'soft'}, 'Fill in a part of an image, extend it, or restore it, with a model that you have trained.'));
  const found = await usableRuns(signal), runs = found.runs.filter(run => run.model.editable);
  if (!runs.length) {
    place.append(found.runs.length ? empty('This page edits pictures of 8 bits (grey, RGB or RGBA), and no model here makes those. Others are edited on the command line, where they can be:',
      'patch-diffusion edit RUN image.npy --mask mask.npy --out edited') : noModel(found));
    return;
  }
  const choice = new Choice(runs, {}, {onchange: suit});
  const seed = seedInput();
  const pictures = element('input', {type: 'number', min: 1, max: 64, step: 1, value: 4, name: 'pictures', required: true});
  const label = element('select', {name: 'class'});
  const conditions = new ConditionsField();
  label.addEventListener('change', suit);
  const steps = slider('Steps', 'Each step removes some noise. More take longer.', {min: 1, max: 100, step: 1, value: 32, name: 'steps'});
  const task = element('select', {name: 'task', onchange: () => { stage?.clear(); suit(); }},
    ...Object.entries(TASKS).map(([value, {text}]) => element('option', {value}, value && value !== 'denoise' ? `${text} (${value})` : text)));
  const told = {factor: ['Factor', 'How many times as wide and as high.', {min: 2, step: 1, value: 2}],
    blur: ['Blur', 'Standard deviation of the Gaussian blur, in pixels.', {min: 0, step: 'any', value: 1}],
    noise: ['Noise', 'Standard deviation of the noise in the image, of 255.', {min: 0, step: 'any', value: ''}]};
  for (const [name, [text, hint, values]] of Object.entries(told)) {
    told[name] = element('input', {type: 'number', name, ...values, oninput: suit});
    field(text, told[name], hint);
  }
  const way = element('select', {name: 'way'}, ...[['', 'automatic'], ['network', 'careful'], ['isotropic', 'quick']]
    .map(([value, text]) => element('option', {value}, text)));
  const guidance = new GuidanceFields();
  const view = new ViewFields();
  const others = await OtherFields.of(signal, ['sigma_min', 'sigma_max', 'rho', 'precision']);  // editing has its own solver
  view.size.hidden = true;  // it follows from the image
  const size = element('select', {name: 'size'}, element('option', {value: 'run'}, 'resize to the run’s images'),
    element('option', {value: 'own'}, 'keep its size'));
  const go = element('button', {className: 'main', disabled: true}, 'Fill in');
  const hint = element('small');
  const form = element('form', {onsubmit: event => { event.preventDefault(); make(); }},
    element('div', {className: 'box'}, choice.row),
    element('div', {className: 'box'}, field('Task', task, 'What to do with the image.'), ...Object.values(told).map(input => input.parentElement)),
    element('div', {className: 'box'}, element('div', {className: 'pair'}, field('Seed', seed, 'the same seed, the same picture'), field('Pictures', pictures, 'results to choose from')),
      field('Class', label, 'What the image shows.'), conditions.label, steps.label, ...guidance.fields,
      more('Method and tiles', field('Method', way, 'Careful fits better, and takes about five times as long as quick.'), ...view.fields), others.fold), go, hint);
  const problem = element('div');
  const table = element('div');
  const results = element('div');
  const onedit = (name, source) => take(() => fetched(source), 'own');
  const showing = (models, pictures) => new Results(results, models.map(nameOf), pictures, {onedit});
  const earlier = new Earlier(({models, pictures, job}) => showing(models, pictures).follow(job, signal));
  place.append(element('div', {className: 'work'}, form, element('div', {}, problem, table, results, earlier.element)));
  let stage = null, fittedTo = '', fittedAs = 'run', original = '', taken = 0;
  let settings = null;
  choose();
  suit();
  settings = new Settings(form);
  settings.fill(values);
  await earlier.look(signal);
  const brought = sessionStorage.getItem('edit');
  sessionStorage.removeItem('edit');
  if (brought) await take(() => fetched(brought), 'own');

  function choose() {
    stage = null;
    const input = element('input', {type: 'file', accept: 'image/*', hidden: true, 'aria-label': 'image', onchange: () => input.files[0] && take(input.files[0])});
    const drop = element('div', {className: 'drop'}, element('div', {}, 'Drop an image here, choose a file, or begin with a sample of the model.'),
      element('div', {className: 'row'}, input, element('button', {type: 'button', onclick: () => input.click()}, 'Choose a file'),
        element('button', {type: 'button', onclick: event => sample(event.target)}, 'Begin with a sample')),
      field('Image size', size, 'Resized, it is also cropped at its centre.'),
      element('small', {}, 'The image goes to patch-diffusion serve and nowhere else.'));
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
      const answer = await sent('api/fit', {run, size: as}, file instanceof Blob ? file : await file());
      const fitted = await answer.blob();
      if (late()) return again();
      stage = new Stage(stride, suit);
      [fittedTo, fittedAs] = [run, as];
      original = answer.headers.get('Original-Size');
      const input = element('input', {type: 'file', accept: 'image/*', hidden: true, name: '', 'aria-label': 'mask', onchange: () => { takeMask(input.files[0]); input.value = ''; }});
      stage.tools.append(input, element('button', {className: 'small mask-file', type: 'button', onclick: () => input.click()}, 'Load a mask'),
        element('button', {className: 'small', type: 'button', onclick: () => { choose(); suit(); }}, 'Another image'));
      table.replaceChildren(stage.element, stage.tools);
      await stage.show(fitted);
      results.replaceChildren();
    } catch (error) {
      if (late()) return again();
      if (fittedTo !== run) choose();
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
      choose();
    }
  }

  // A picture that is white where the image is to be filled in, as the command line takes it.
  async function takeMask(file) {
    problem.replaceChildren();
    const {height, width} = stage, mine = taken;
    try {
      const {mask, note} = await send('api/mask', {size: fittedAs, image: `${height} ${width}`, original}, file);
      if (mine !== taken) return;
      await stage.load(mask);
      if (note) problem.replaceChildren(element('p', {className: 'soft', role: 'status'}, note));
    } catch (error) {
      if (mine === taken) problem.replaceChildren(trouble(error));
    }
  }

  function suit() {
    const {model} = choice;
    if (stage && fittedTo !== choice.asked.run) { take(stage.blob, fittedAs); return; }
    fillClasses(label, model, model.classless ? 'not said' : 'choose one');
    conditions.suit([model]);
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
    hint.textContent = !stage ? 'Choose an image first.' : missing ? 'Say how large it is.' : !asked ? 'Draw over what is to be filled in, load a mask that is white there, or drag an edge to extend the image.'
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
      seed: Number(seed.value), pictures: Number(pictures.value), label: label.value === '' ? null : Number(label.value), ...conditions.asked,
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
    shown.giveFocus(go);
  }
}
