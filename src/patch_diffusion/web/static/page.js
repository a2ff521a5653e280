// What every part of the page uses: elements, times, and questions that are repeated while a part is shown.

export function element(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== 'list') made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

// Repeats a question while the page is looked at, until the signal. What is wrong at first is told; later it may pass.
export async function repeat(seconds, look, signal) {
  const again = () => {
    if (!signal.aborted) setTimeout(turn, seconds * 1000);
  };
  const turn = async () => {
    if (signal.aborted) return;
    if (!document.hidden) await look().catch(() => {});
    again();
  };
  try {
    await look();
  } catch (error) {
    if (error.status) throw error;
  }
  again();
}

export function ago(time) {
  const seconds = Math.max(Date.now() / 1000 - time, 0);
  for (const [unit, name] of [[86400, 'day'], [3600, 'hour'], [60, 'minute']]) {
    const number = Math.floor(seconds / unit);
    if (number) return `${number} ${name}${number > 1 ? 's' : ''} ago`;
  }
  return 'just now';
}

export const digits = value => value === null || value === undefined ? '' : Number(value.toPrecision(3)).toString();

export async function loaded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    button.textContent = 'Not allowed';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
}

// Lines are broken between its words, not at their hyphens.
export const command = text => element('div', {className: 'command'},
  element('code', {}, ...text.split(' ').flatMap((word, index) => [index ? ' ' : '', element('span', {}, word)])),
  element('button', {className: 'small', type: 'button', onclick: event => copy(text, event.target)}, 'Copy'));

// A word of a shell command.
export const quoted = word => /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

// What stands where nothing is yet: what to do, in words and as commands.
export const empty = (words, ...commands) => element('div', {className: 'empty'}, element('p', {}, words), ...commands.map(command));

export const trouble = error => element('p', {className: 'error', role: 'alert'}, error.message);
