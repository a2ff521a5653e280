// The runs, and one of them with its curves and samples, live.

import {address, ask} from './ask.js';
import {hover} from './charts.js';
import {howToTrain} from './models.js';
import {ago, digits, element, empty, quoted, repeat} from './page.js';

const picture = (run, file) => address('api/picture', {run, file});
const link = (page, values) => `#/${page}?${new URLSearchParams(values)}`;
const stepOf = file => Number(file.match(/\d+/)[0]).toLocaleString('en');

export async function showRuns(place, values, signal) {
  const count = element('p', {className: 'soft'});
  const list = element('div', {className: 'runs'});
  place.append(element('h1', {}, 'Runs'), count, list);
  document.title = 'Runs – patch diffusion';
  let before = '';
  await repeat(3, async () => {
    const {folder, runs} = await ask('api/runs', {}, signal);
    const now = JSON.stringify(runs);
    count.textContent = runs.length ? `${runs.length} in ${folder}. Choose one to see its curves and samples.` : '';
    if (now === before) return;
    before = now;
    const focused = document.activeElement?.getAttribute('href');
    list.className = runs.length ? 'runs' : '';
    list.replaceChildren(...runs.length ? runs.map(card)
      : [howToTrain(`There is no run in ${folder} yet. Train one, on your images or on the built-in digits, and it appears here:`, folder)]);
    [...list.children].find(each => focused && each.getAttribute('href') === focused)?.focus({preventScroll: true});
  }, signal);
}

function card(run) {
  if (run.damaged) {
    return element('div', {className: 'run'}, element('div', {className: 'text'}, element('b', {}, run.name),
      element('span', {className: 'pill failed'}, 'damaged'), element('small', {}, run.damaged)));
  }
  const {resolution: [height, width], classes} = run.model;
  const shot = run.picture ? element('img', {src: picture(run.name, run.picture), alt: `samples of ${run.name}`, loading: 'lazy'})
    : run.has_model ? 'no samples: see how to make some' : 'no samples yet: they come with training';
  return element('a', {className: 'run', href: link('run', {name: run.name})},
    element('div', {className: 'shot'}, shot),
    element('div', {className: 'text'}, element('b', {}, run.name), state(run),
      element('small', {}, `${height} × ${width}${classes ? `, ${classes} classes` : ''}${run.step ? `, step ${run.step.toLocaleString('en')}` : ''}`),
      element('small', {}, `${run.loss === null ? '' : `training loss ${digits(run.loss)}, `}${ago(run.changed)}`),
      run.spent < 1 && run.state !== 'imported' ? meter(run.spent) : null));
}

// A word, and how far a run is that is not at its end.
const state = (run, far = true) => element('span', {className: `pill ${run.few ? 'early ' : ''}${run.state}`},
  run.state === 'complete' && run.few ? 'complete, few images seen' : far && (run.state === 'training' || run.state === 'stopped') ? `${run.state}, ${(100 * run.spent).toFixed(run.spent < .1 ? 1 : 0)} %` : run.state);

function meter(part) {
  const bar = element('div');
  bar.style.width = `${100 * part}%`;
  return element('div', {className: 'meter', role: 'progressbar', 'aria-label': 'trained', 'aria-valuenow': Math.round(100 * part)}, bar);
}

export async function showRun(place, values, signal) {
  const name = values.get('name');
  document.title = `${name} – patch diffusion`;
  const pill = element('div');
  const actions = element('div', {className: 'row'});
  const [standing, samples, charts, about] = [0, 0, 0, 0].map(() => element('section'));
  place.append(element('div', {className: 'head'}, element('div', {}, element('h1', {}, name), pill), actions), standing, samples, charts, about);
  let version = '', seen = null, ready = null, described = '';
  await repeat(2, async () => {
    let run;
    try {
      run = await ask('api/run', {name, known: version}, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      pill.replaceChildren(element('span', {className: 'pill failed'}, 'this run is not there any more'));
      actions.replaceChildren();
      ready = null;
      version = '';
      seen = null;
      return;
    }
    pill.replaceChildren(run.state === 'complete' ? '' : state(run, false), run.trainer ? element('small', {}, ` by ${run.trainer}`)
      : run.state === 'stopped' ? element('small', {}, ', continues with ', element('code', {}, `patch-diffusion train --out ${quoted(run.folder)}`)) : '');
    if (ready !== run.has_model) {
      ready = run.has_model;
      actions.replaceChildren(...ready ? [element('a', {className: 'button', href: link('generate', {run: name})}, 'Generate'),
        run.model.editable ? element('a', {className: 'button', href: link('edit', {run: name})}, 'Edit an image') : null].filter(Boolean)
        : [element('small', {}, 'can be sampled from its first checkpoint on')]);
    }
    if (run.standing !== undefined && !charts.matches(':hover')) {
      const open = about.querySelector('details')?.open;
      version = run.version;
      standing.innerHTML = run.standing;
      charts.innerHTML = run.charts && `<h2>Curves <small>over optimizer steps</small></h2><div class="charts">${run.charts}</div>`;
      if (run.about !== described) about.innerHTML = described = run.about;  // what has the focus there keeps it
      if (open) about.querySelector('details').open = true;
      hover(charts);
    }
    const now = `${run.has_model} ${run.samples}`;
    if (seen === now) return;
    seen = now;
    if (run.samples.length) film(samples, name, run.samples);
    else samples.replaceChildren(element('h2', {}, 'Samples'), noSamples(run));
  }, signal);
}

const noSamples = run => run.has_model
  ? empty('This run has made no pictures while it trained. Make some under Generate, or from the command line:', `patch-diffusion sample ${quoted(run.folder)} --seeds 0-15 --out pictures`)
  : empty('No samples yet: they come while it trains. If it was stopped, it continues with:', `patch-diffusion train --out ${quoted(run.folder)}`);

// The history of samples: one large, all of them in a strip below.
function film(place, name, files) {
  const large = element('img', {alt: ''});
  const at = element('small');
  const strip = element('div', {className: 'film'});
  const buttons = files.map(file => element('button', {type: 'button', onclick: () => choose(file)},
    element('img', {src: picture(name, file), alt: '', loading: 'lazy'}), `step ${stepOf(file)}`));
  function choose(file) {
    large.src = picture(name, file);
    large.alt = `samples of ${name} after step ${stepOf(file)}`;
    at.textContent = ` after step ${stepOf(file)}, of the averaged weights, from the same seeds`;
    buttons.forEach((button, index) => button.setAttribute('aria-pressed', files[index] === file));
  }
  strip.append(...buttons);
  place.replaceChildren(element('h2', {}, 'Samples', at), element('div', {className: 'big'}, large), files.length > 1 ? strip : '');
  choose(files.at(-1));
  strip.scrollLeft = strip.scrollWidth;
}
