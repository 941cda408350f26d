/** Starts the page: a chat, and the replicas live. It uses the public API and nothing else. */

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { KeyDialog } from "./key_dialog.js";
import { Replicas } from "./replicas.js";
import { Requests } from "./requests.js";
import { Settings } from "./settings.js";

const CONNECTION_WORDS = { live: "Live", waiting: "Reconnecting", refused: "API key needed" };

function main() {
  const api = new Api();
  const chat = new Chat(api, new Settings(byId("settings")));
  const replicas = new Replicas();
  const requests = new Requests();
  const model = new ModelName(api, chat);
  const feed = new Feed(api, {
    onEvent(name, content) {
      replicas.show(content);
      requests.show(content.requests, { isSnapshot: name === "snapshot" });
      if (content.replicas.some(({ state }) => state === "ready")) model.learn();
    },
    onState: showConnection,
  });
  new KeyDialog(api, () => feed.retry());
  switchViews();
  feed.run();
}

/** The model's name, which is known once a replica has been ready. */
class ModelName {
  #api;
  #chat;
  #isKnown = false;

  constructor(api, chat) {
    this.#api = api;
    this.#chat = chat;
  }

  async learn() {
    if (this.#isKnown) return;
    this.#isKnown = true;
    try {
      const { data } = await (await this.#api.get("v1/models")).json();
      this.#chat.model = data[0].id;
      setText(byId("model"), data[0].id);
      document.title = `${data[0].id} · Quire`;
    } catch {
      this.#isKnown = false; // the next event tries again
    }
  }
}

function showConnection(state) {
  const shown = byId("connection");
  shown.dataset.state = state;
  setText(shown, CONNECTION_WORDS[state]);
  byId("replicas").toggleAttribute("data-stale", state !== "live");
}

/** On narrow screens one view is shown at a time. */
function switchViews() {
  const buttons = document.querySelectorAll("[data-shows]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.shows;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
}

main();
