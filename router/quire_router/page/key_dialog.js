/** Asks for the API key: when the server wants one, and when somebody wants to change it. */

import { byId, setText } from "./dom.js";

export class KeyDialog {
  #dialog = byId("key-dialog");

  /** `onChange` is called when there is another key to try. */
  constructor(api, onChange) {
    byId("change-key").addEventListener("click", () => this.#open(""));
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      api.key = byId("key").value.trim();
      this.#dialog.close();
      onChange();
    });
    api.onRefused = (message) => this.#open(message);
  }

  #open(reason) {
    setText(byId("key-reason"), reason);
    if (this.#dialog.open) return;
    byId("key").value = "";
    this.#dialog.showModal();
  }
}
