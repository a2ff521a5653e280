// The settings of a form in the address, so that they survive a reload and can be passed on as a link.

export class Settings {
  // form: with the values that it begins with, which are left out of the address.
  constructor(form) {
    this.form = form;
    this.usual = this.values();
    this.usual.delete('run');  // which run is the first changes as others are trained
    for (const kind of ['change', 'keyup']) form.addEventListener(kind, () => this.write());
  }

  // A list for each name, as there can be several models.
  values() {
    const found = new Map();
    for (const {name, value} of this.form.elements) {
      if (name) found.set(name, [...found.get(name) ?? [], value]);
    }
    return found;
  }

  // Fields take the values of an address, in their order, as some suit themselves to those before; what they do not take is left out.
  fill(values) {
    this.filling = true;
    const taken = {};
    for (const input of [...this.form.elements].filter(({name}) => name)) {
      const place = taken[input.name] = (taken[input.name] ?? -1) + 1;
      const [value, before] = [values.getAll(input.name)[place], input.value];
      if (value === undefined) continue;
      input.value = value;
      if (input.value !== value) input.value = before;
      for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, {bubbles: true}));
    }
    this.filling = false;
    this.write();
  }

  // The link of this part of the page has them, too: whoever looks at the runs and comes back finds them again.
  write() {
    if (this.filling || !this.form.isConnected) return;
    const values = new URLSearchParams();
    for (const [name, found] of this.values()) {
      if (this.form.elements[name].disabled) continue;  // it has no effect
      if (found.some(value => value !== this.usual.get(name)?.[0])) found.forEach(value => values.append(name, value));
    }
    const address = `${location.hash.split('?')[0]}?${values}`;
    history.replaceState(null, '', address);
    document.querySelector('nav [aria-current]').href = address;
  }
}
