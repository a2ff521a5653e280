// Questions to the server, and the news of what was asked for.

export class Refused extends Error {
  constructor(status, reason) { super(reason); this.status = status; }
}

const lost = document.querySelector('#lost');

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name !== 'AbortError') lost.hidden = false;
    throw error;
  }
  lost.hidden = true;
  if (response.ok) return response;
  let reason = `the server answers ${response.status}`;
  try { reason = (await response.json()).error; } catch { /* not from us */ }
  throw new Refused(response.status, reason);
}

export const address = (path, values) => `${path}?${new URLSearchParams(values)}`;

export async function ask(path, values = {}, signal) {
  return (await answered(address(path, values), {signal})).json();
}

export async function request(path, content) {
  const headers = {'Content-Type': 'application/json'};
  return (await answered(path, {method: 'POST', headers, body: JSON.stringify(content)})).json();
}

export async function sent(path, values, file) {
  const headers = {'Content-Type': 'application/octet-stream'};
  return answered(address(path, values), {method: 'POST', headers, body: file});
}

export const send = async (...file) => (await sent(...file)).json();

// A picture that the server has.
export const fetched = async source => (await answered(source)).blob();

export const stop = id => answered(address('api/stop', {id}), {method: 'POST', headers: {'Content-Type': 'application/json'}});

// The events of a job as they come, until it is over; a server that is away for a moment is asked again.
// A job whose page is left, reloaded or closed is stopped, so that the next one need not wait for it.
export async function follow(id, tell, signal) {
  const leave = () => navigator.sendBeacon(address('api/stop', {id}), new Blob([], {type: 'application/json'}));
  addEventListener('pagehide', leave);
  try {
    let after = 0, state = '';
    while (!['done', 'failed', 'stopped'].includes(state)) {
      let news;
      try {
        news = await ask('api/job', {id, after, state}, signal);
      } catch (error) {
        if (signal.aborted) stop(id).catch(() => {});
        if (error instanceof Refused || signal.aborted) throw error;
        await new Promise(later => setTimeout(later, 1500));
        continue;
      }
      state = news.state;
      after += news.events.length;
      tell(news);
    }
  } finally {
    removeEventListener('pagehide', leave);
  }
}
