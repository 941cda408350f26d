/** Makes elements. Text always becomes text nodes: nothing here can turn it into markup. */

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Sets text only where it differs, so that a selection and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Elements of a list by key, made when a key is new and removed when it is gone. */
export class KeyedList {
  #parent;
  #make;
  #views = new Map();

  constructor(parent, make) {
    this.#parent = parent;
    this.#make = make;
  }

  /** Shows exactly these items in this order; `view.update(item)` gets each. */
  show(items, keyOf) {
    const keys = new Set(items.map(keyOf));
    for (const [key, view] of this.#views) {
      if (keys.has(key)) continue;
      view.root.remove();
      this.#views.delete(key);
    }
    items.forEach((item, position) => {
      const view = this.#viewOf(keyOf(item));
      view.update(item);
      const there = this.#parent.children[position];
      if (there !== view.root) this.#parent.insertBefore(view.root, there ?? null);
    });
  }

  #viewOf(key) {
    if (!this.#views.has(key)) this.#views.set(key, this.#make());
    return this.#views.get(key);
  }
}
