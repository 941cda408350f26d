/** Follows the replicas for as long as the page is open, over lost connections. */

import { ApiError, serverEvents } from "./api.js";

const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 5000;
/** Events come every second; a connection without any for so long is dead. */
const SILENCE_MS = 5000;

export class Feed {
  #api;
  #onEvent;
  #onState;
  #wake = () => {};

  /** `onEvent(name, content)` gets every event, `onState` live, waiting or refused. */
  constructor(api, { onEvent, onState }) {
    this.#api = api;
    this.#onEvent = onEvent;
    this.#onState = onState;
  }

  /** Tries again at once, as when the key has changed. */
  retry() {
    this.#wake();
  }

  async run() {
    let wait = FIRST_WAIT_MS;
    while (true) {
      let state = "waiting";
      try {
        await this.#follow(() => (wait = FIRST_WAIT_MS));
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) state = "refused";
      }
      this.#onState(state);
      await this.#pause(state === "refused" ? null : wait);
      wait = Math.min(wait * 2, MAX_WAIT_MS);
    }
  }

  async #follow(onFirst) {
    const controller = new AbortController();
    const watchdog = new Watchdog(() => controller.abort());
    try {
      const { signal } = controller;
      const response = await this.#api.get("v1/replicas/events", { signal });
      for await (const { name, data } of serverEvents(response)) {
        watchdog.pat();
        onFirst();
        this.#onState("live");
        this.#onEvent(name, JSON.parse(data));
      }
    } finally {
      watchdog.stop();
    }
  }

  /** Waits so long, or until `retry`; null waits for that alone. */
  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = milliseconds === null ? 0 : setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

class Watchdog {
  #bark;
  #timer;

  constructor(bark) {
    this.#bark = bark;
    this.pat();
  }

  pat() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#bark, SILENCE_MS);
  }

  stop() {
    clearTimeout(this.#timer);
  }
}
