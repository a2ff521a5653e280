// An image that is filled in where a mask is drawn, and extended where an edge is dragged.

import {address, follow, request, send} from './ask.js';
import {Choice, GuidanceFields, field, fillClasses, slider, usableRuns} from './models.js';
import {element, trouble} from './page.js';
import {Results} from './results.js';
import {Stage} from './stage.js';

export async function showEdit(place, values, signal) {
  document.title = 'Edit – patch diffusion';
  place.append(element('h1', {}, 'Edit'));
  const runs = (await usableRuns(signal)).runs.filter(run => run.model.editable);
  if (!runs.length) {
    place.append(element('div', {className: 'empty'}, 'There is no trained model of pictures (8 bits, grey, RGB or RGBA) yet.'));
    return;
  }
  const choice = new Choice(runs, values, {onchange: suit});
  const seed = element('input', {type: 'number', min: 0, step: 1, value: 0, name: 'seed', required: true});
  const pictures = element('input', {type: 'number', min: 1, max: 64, step: 1, value: 4, name: 'pictures', required: true});
  const label = element('select', {name: 'class'});
  label.addEventListener('change', suit);
  const steps = slider('Steps', {min: 1, max: 100, step: 1, value: 32, name: 'steps'});
  const way = element('select', {name: 'way'}, element('option', {value: 'network'}, 'careful'),
    element('option', {value: 'isotropic'}, 'quick'));
  const guidance = new GuidanceFields();
  const coords = element('select', {name: 'coords'}, element('option', {value: 'extend'}, 'goes on as it was learned'),
    element('option', {value: 'stretch'}, 'is one image as a whole'));
  const coordsLabel = field('The larger image', coords);
  const go = element('button', {className: 'main', disabled: true}, 'Fill in');
  const hint = element('small');
  const form = element('form', {onsubmit: event => { event.preventDefault(); make(); }},
    element('div', {className: 'box'}, choice.row),
    element('div', {className: 'box'}, element('div', {className: 'pair'}, field('First seed', seed), field('Pictures', pictures)),
      field('Class', label), steps.label, field('Way', way), coordsLabel, ...guidance.fields), go, hint);
  const problem = element('div');
  const table = element('div');
  const results = element('div');
  place.append(element('div', {className: 'work'}, form, element('div', {}, problem, table, results)));
  let stage = null, fittedTo = '';
  empty();
  suit();
  const brought = sessionStorage.getItem('edit');
  sessionStorage.removeItem('edit');
  if (brought) await fetch(brought).then(response => response.blob()).then(take);

  function empty() {
    stage = null;
    const input = element('input', {type: 'file', accept: 'image/*', hidden: true, onchange: () => input.files[0] && take(input.files[0])});
    const drop = element('div', {className: 'drop'}, element('div', {}, 'Drop an image here'),
      element('div', {className: 'row'}, input, element('button', {type: 'button', onclick: () => input.click()}, 'Choose a file'),
        element('button', {type: 'button', onclick: event => sample(event.target)}, 'Begin with a sample')),
      element('small', {}, 'It is cropped at its centre to the shape of the run’s images, and stays on this machine.'));
    for (const name of ['dragenter', 'dragover']) drop.addEventListener(name, event => { event.preventDefault(); drop.classList.add('over'); });
    drop.addEventListener('dragleave', () => drop.classList.remove('over'));
    drop.addEventListener('drop', event => {
      event.preventDefault();
      drop.classList.remove('over');
      if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    });
    table.replaceChildren(drop);
  }

  async function take(file) {
    problem.replaceChildren();
    try {
      const fitted = await send('api/fit', {run: choice.asked.run}, file);
      stage = new Stage(choice.model.stride, suit);
      fittedTo = choice.asked.run;
      stage.tools.append(element('button', {className: 'small', type: 'button', onclick: () => { empty(); suit(); }}, 'Another image'));
      table.replaceChildren(stage.element, stage.tools);
      await stage.show(fitted);
      results.replaceChildren();
    } catch (error) {
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
      await take(await (await fetch(address('api/file', {job, name: made.shown}))).blob());
    } catch (error) {
      problem.replaceChildren(trouble(error));
      empty();
    }
  }

  function suit() {
    const {model} = choice;
    if (stage && fittedTo !== choice.asked.run) { take(stage.blob); return; }
    fillClasses(label, model, model.classless ? 'not said' : 'choose one');
    guidance.suit([model], label.value !== '');
    coordsLabel.hidden = !stage?.extended || !model.coords;
    const classMissing = model.classes > 0 && !model.classless && label.value === '';
    const asked = stage && (stage.hasMask || stage.extended);
    go.disabled = !asked || classMissing;
    go.textContent = stage?.extended ? 'Extend' : 'Fill in';
    hint.textContent = !stage ? 'Choose an image first.' : !asked ? 'Draw over what is to be filled, or drag an edge to extend the image.'
      : classMissing ? 'This model has learned images of a class only: say which this image is of.' : '';
  }

  async function make() {
    go.disabled = true;
    problem.replaceChildren();
    const extend = Object.fromEntries(Object.entries(stage.extend).filter(pair => pair[1]));
    const wanted = {model: choice.asked, image: await stage.imageText(), mask: stage.hasMask ? await stage.maskText() : null, extend,
      seed: Number(seed.value), pictures: Number(pictures.value), label: label.value === '' ? null : Number(label.value),
      steps: Number(steps.input.value), covariance: way.value, ...guidance.asked,
      coords: stage.extended && choice.model.coords ? coords.value : null};
    // One that was not extended can be edited further.
    const further = source => fetch(source).then(response => response.blob()).then(take);
    const shown = new Results(results, [choice.name], wanted.pictures, stage.extended ? {} : {onedit: (name, source) => further(source)});
    results.scrollIntoView({block: 'nearest'});
    try {
      const {job} = await request('api/edit', wanted);
      await shown.follow(job, signal);
    } catch (error) {
      results.replaceChildren(trouble(error));
    }
    suit();
  }
}
