/** The conversation: asking, stopping, trying again. */

import { Answer } from "./answer.js";
import { textNodes } from "./answer_text.js";
import { byId, element, setText } from "./dom.js";

/** How far from the end the reader may have scrolled and still be taken along, in pixels. */
const NEAR_END = 60;

export class Chat {
  #api;
  #settings;
  #model = "";
  #turns = [];
  #running = null;
  #log = byId("messages");
  #question = byId("question");

  constructor(api, settings) {
    this.#api = api;
    this.#settings = settings;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    this.#question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#ask();
    });
    byId("stop").addEventListener("click", () => this.#running?.stop());
    byId("clear").addEventListener("click", () => this.#clear());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#running?.stop();
    });
  }

  set model(name) {
    this.#model = name;
  }

  #ask() {
    const text = this.#question.value.trim();
    if (!text || this.#running || !this.#settings.check()) return;
    this.#question.value = "";
    const turn = { question: text, view: new TurnView(text, () => this.#retry()) };
    this.#turns.push(turn);
    this.#log.append(turn.view.root);
    this.#answer(turn);
  }

  #retry() {
    const turn = this.#turns.at(-1);
    if (!this.#running && turn && this.#settings.check()) this.#answer(turn);
  }

  async #answer(turn) {
    const answer = (this.#running = turn.answer = new Answer());
    for (const { view } of this.#turns) view.canRetry = false;
    this.#showRunning("Answering");
    this.#log.scrollTop = this.#log.scrollHeight;
    let isDue = false;
    const show = () => {
      isDue = false;
      this.#keepingEnd(() => turn.view.show(answer));
    };
    await answer.stream(this.#api, this.#body(), () => {
      if (isDue) return;
      isDue = true;
      requestAnimationFrame(show);
    });
    this.#running = null;
    show();
    if (!this.#turns.includes(turn)) return; // the chat was cleared meanwhile
    turn.view.canRetry = true;
    this.#showRunning(answer.state === "failed" ? "" : `Answer ${answer.state}. ${answer.text}`);
  }

  /** Returns the request: all that was said, answers that failed without a word left out. */
  #body() {
    const messages = [];
    if (this.#settings.systemPrompt) {
      messages.push({ role: "system", content: this.#settings.systemPrompt });
    }
    for (const { question, answer } of this.#turns) {
      messages.push({ role: "user", content: question });
      if (answer.text) messages.push({ role: "assistant", content: answer.text });
    }
    const model = this.#model ? { model: this.#model } : {};
    return { ...model, messages, ...this.#settings.sampling() };
  }

  #showRunning(announcement) {
    const isRunning = this.#running !== null;
    const hadFocus = document.activeElement;
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    if (hadFocus === byId("send") || hadFocus === byId("stop")) this.#question.focus();
    this.#log.setAttribute("aria-busy", String(isRunning));
    setText(byId("announcer"), announcement);
  }

  #clear() {
    this.#running?.stop();
    this.#turns = [];
    this.#log.replaceChildren();
    this.#question.focus();
  }

  #keepingEnd(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) {
      this.#log.scrollTop = this.#log.scrollHeight;
    }
  }
}

/** A question and its answer. */
class TurnView {
  #text = element("div", { className: "text" });
  #error = element("p", { className: "error", role: "alert", hidden: true });
  #figures = element("span", { className: "quiet figures-line" });
  #retry = element("button", { type: "button", hidden: true }, "Retry");

  constructor(question, onRetry) {
    this.#retry.addEventListener("click", onRetry);
    const asked = element("div", { className: "text" }, question);
    const row = element("div", { className: "row" }, this.#figures, this.#retry);
    this.root = element(
      "div",
      {},
      element("article", { className: "message user" }, element("h3", {}, "You"), asked),
      element(
        "article",
        { className: "message assistant" },
        ...[element("h3", {}, "Answer"), this.#text, this.#error, row],
      ),
    );
  }

  set canRetry(value) {
    this.#retry.hidden = !value;
  }

  show(answer) {
    this.root.lastElementChild.dataset.state = answer.state;
    this.#text.replaceChildren(...textNodes(answer.text));
    setText(this.#error, answer.error);
    this.#error.hidden = !answer.error;
    setText(this.#figures, answer.figures());
  }
}
