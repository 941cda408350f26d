/** The replicas, live. */

import { byId, element, KeyedList, setText } from "./dom.js";
import { count, duration, percent, plural, rate } from "./format.js";
import { Plot } from "./plot.js";

const BAD_STATES = new Set(["connecting", "unhealthy", "unresponsive"]);

const STATE_WORDS = {
  ready: "ready",
  connecting: "not connected",
  draining: "draining",
  unhealthy: "unhealthy",
  unresponsive: "does not respond",
};

const FIGURES = [
  ["Running", (r) => count(r.running)],
  ["Waiting", (r) => count(r.waiting)],
  ["Tokens/s", (r) => rate(r.tokens_per_s)],
  ["KV use", (r) => percent(r.kv_usage)],
  ["Cache hits", (r) => (r.prompt_tokens ? percent(r.cached_tokens / r.prompt_tokens) : "none yet")],
  ["Step", (r) => (r.decode_step_s ? duration(r.decode_step_s) : "none yet")],
];

export class Replicas {
  #list = new KeyedList(byId("replica-list"), () => new ReplicaView());

  /** Takes an event's content. */
  show({ replicas, parked }) {
    this.#list.show(replicas, (replica) => replica.replica);
    setText(byId("totals"), totals(replicas, parked));
  }
}

function totals(replicas, parked) {
  const sum = (field) => replicas.reduce((total, replica) => total + replica[field], 0);
  const ready = replicas.filter((replica) => replica.state === "ready").length;
  const parts = [
    `${count(ready)} of ${plural(replicas.length, "replica")} ready`,
    `${count(sum("running"))} running`,
    `${count(sum("waiting"))} waiting`,
    `${rate(sum("tokens_per_s"))} tok/s`,
  ];
  if (parked) parts.push(`${plural(parked, "request")} waiting for a replica`);
  return parts.join(" · ");
}

class ReplicaView {
  #name = element("h3");
  #state = element("span", { className: "state" });
  #notes = element("p", { className: "quiet" });
  #figures = FIGURES.map(() => element("dd"));
  #tokens = new Plot("tok/s", rate, 10);
  #waiting = new Plot("waiting", count, 4);
  #usage = new Plot("KV use", percent, 1);

  constructor() {
    const figures = FIGURES.map(([title], position) =>
      element("div", {}, element("dt", {}, title), this.#figures[position]),
    );
    const plots = [this.#tokens, this.#waiting, this.#usage].map((plot) => plot.root);
    this.root = element(
      "li",
      { className: "replica" },
      element("div", { className: "head" }, this.#name, this.#state),
      this.#notes,
      element("dl", { className: "figures" }, ...figures),
      element("div", { className: "plots" }, ...plots),
    );
  }

  update(replica) {
    this.root.dataset.replica = replica.replica;
    setText(this.#name, replica.replica);
    this.#showState(replica);
    setText(this.#notes, notes(replica));
    this.#notes.hidden = !this.#notes.textContent;
    FIGURES.forEach(([, show], position) => setText(this.#figures[position], show(replica)));
    this.#plot(replica);
  }

  #showState({ state, breaker }) {
    const isGood = state === "ready" && breaker === "closed";
    setText(this.#state, isGood ? "✓ ready" : `! ${STATE_WORDS[state] ?? state}`);
    this.#state.classList.toggle("good", isGood);
    this.#state.classList.toggle("bad", BAD_STATES.has(state));
  }

  #plot({ history, tokens_per_s, waiting, kv_usage }) {
    if (history) {
      this.#tokens.set(history.tokens_per_s);
      this.#waiting.set(history.waiting);
      this.#usage.set(history.kv_usage);
    } else {
      this.#tokens.add(tokens_per_s);
      this.#waiting.add(waiting);
      this.#usage.add(kv_usage);
    }
  }
}

/** Returns what is out of the ordinary, in words. */
function notes(replica) {
  const parts = [];
  if (replica.retired) parts.push("leaving: finishes what it has begun");
  if (replica.breaker === "open") parts.push("failed too often: requests are kept away for a while");
  if (replica.state === "ready" && replica.index_mode === "degraded") {
    parts.push("its cache is guessed from what was sent there");
  }
  if (replica.index_mode === "off") parts.push("caches no prefixes");
  if (replica.preemptions) parts.push(plural(replica.preemptions, "preemption"));
  for (const [reason, number] of Object.entries(replica.failures)) {
    parts.push(`${count(number)} ${reason}`);
  }
  return parts.join(" · ");
}
