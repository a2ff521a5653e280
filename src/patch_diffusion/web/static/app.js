// Which part of the page is shown: the words after the # of its address say it.

import {showEdit} from './edit.js';
import {showGenerate} from './generate.js';
import {element, trouble} from './page.js';
import {showRun, showRuns} from './runs.js';

const view = document.querySelector('#view');
const parts = {runs: showRuns, run: showRun, generate: showGenerate, edit: showEdit};
let shown = new AbortController();

async function show() {
  shown.abort();
  shown = new AbortController();
  const {signal} = shown;
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const name = path in parts ? path : 'runs';
  for (const link of document.querySelectorAll('nav [data-page]')) {
    const current = link.dataset.page === (name === 'run' ? 'runs' : name);
    current ? link.setAttribute('aria-current', 'page') : link.removeAttribute('aria-current');
  }
  const place = element('div');
  view.replaceChildren(place);
  try {
    await parts[name](place, new URLSearchParams(query), signal);
  } catch (error) {
    if (!signal.aborted) place.prepend(trouble(error));
  }
}

addEventListener('hashchange', () => {
  show();
  scrollTo(0, 0);
  if (!document.activeElement.closest('nav')) view.focus();  // what had the focus is gone
});
show();
