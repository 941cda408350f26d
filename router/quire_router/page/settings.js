/** Sampling settings: what is left empty is not sent, and the model's own value holds. */

const STORE = "quire-settings";

export class Settings {
  #form;

  constructor(form) {
    this.#form = form;
    this.#restore();
    form.addEventListener("input", () => this.#save());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Shows what is wrong with a value; returns whether all can be sent. */
  check() {
    if (this.#form.checkValidity()) return true;
    this.#form.closest("details").open = true;
    return this.#form.reportValidity();
  }

  get systemPrompt() {
    return this.#form.elements.system.value.trim();
  }

  /** Returns the fields of a request. */
  sampling() {
    const fields = {};
    for (const input of this.#form.querySelectorAll("input")) {
      if (input.value !== "") fields[input.name] = Number(input.value);
    }
    return fields;
  }

  #save() {
    const values = Object.fromEntries(new FormData(this.#form));
    sessionStorage.setItem(STORE, JSON.stringify(values));
  }

  #restore() {
    const values = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
    for (const [name, value] of Object.entries(values)) {
      const field = this.#form.elements.namedItem(name);
      if (field) field.value = value;
    }
  }
}
