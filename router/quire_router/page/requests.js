/** Where the last requests went, why, and what became of them. */

import { byId, element, KeyedList, setText } from "./dom.js";
import { clock, count, duration, plural } from "./format.js";

const MAX_SHOWN = 50;

const REASONS = {
  only: "the only replica that could take it",
  cost: "the least predicted time",
  cached: "as soon as elsewhere, with more of the prompt cached",
  active: "as good as others, with fewer requests",
  turn: "as good as others: its turn",
};

const OUTCOMES = {
  refused: "refused: the request was wrong",
  full: "refused: full",
  draining: "refused: draining",
  lost: "the replica was lost",
  fault: "the engine failed",
};

const GOOD = new Set(["running", "done"]);

export class Requests {
  #byNumber = new Map();
  #list = new KeyedList(byId("request-list"), () => new RequestView());

  /** Takes an event's content; a snapshot replaces what there was. */
  show(requests, { isSnapshot }) {
    if (isSnapshot) this.#byNumber.clear();
    for (const request of requests) this.#byNumber.set(request.number, request);
    const newest = [...this.#byNumber.values()].sort((a, b) => b.number - a.number);
    for (const { number } of newest.splice(MAX_SHOWN)) this.#byNumber.delete(number);
    if (isSnapshot || requests.length) this.#list.show(newest, ({ number }) => number);
    byId("no-requests").hidden = newest.length > 0;
  }
}

class RequestView {
  #title = element("p");
  #why = element("p", { className: "quiet" });
  #what = element("p", { className: "quiet" });
  #outcome = element("span", { className: "state" });
  #rows = element("tbody");

  constructor() {
    const heads = ["Replica", "Cost", "Cached", "Queued", "Active"];
    const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
    const table = element("table", {}, element("thead", {}, head), this.#rows);
    this.root = element(
      "li",
      { className: "request" },
      element("div", { className: "row" }, this.#title, this.#outcome),
      this.#why,
      this.#what,
      element(
        "details",
        {},
        element("summary", {}, "What was compared"),
        element("div", { className: "scroll" }, table),
      ),
    );
  }

  update(request) {
    setText(this.#title, `${clock(request.at)} → ${request.replica}`);
    setText(this.#why, why(request));
    setText(this.#what, what(request));
    setText(this.#outcome, OUTCOMES[request.outcome] ?? request.outcome);
    this.#outcome.classList.toggle("good", GOOD.has(request.outcome));
    this.#outcome.classList.toggle("bad", request.outcome in OUTCOMES);
    // What was compared never changes.
    if (!this.#rows.children.length) this.#rows.append(...candidateRows(request));
  }
}

function why({ reason, attempt, waited_s }) {
  const parts = [REASONS[reason] ?? reason];
  if (attempt > 1) parts.push(`attempt ${attempt}`);
  if (waited_s >= 0.05) parts.push(`waited ${duration(waited_s)} for a replica`);
  return parts.join(" · ");
}

function what(request) {
  const cached = request.cached_tokens ?? request.expected_cached_tokens;
  const parts = [`prompt ${count(request.prompt_tokens)}, ${count(cached)} cached`];
  if (request.first_response_s !== null) {
    parts.push(`first token ${duration(request.first_response_s)}`);
  }
  if (request.completion_tokens !== null) parts.push(plural(request.completion_tokens, "token"));
  if (request.total_s !== null) parts.push(`${duration(request.total_s)} in all`);
  return parts.join(" · ");
}

function candidateRows({ candidates, replica, num_candidates }) {
  const rows = candidates.map((candidate) => {
    const cells = [
      candidate.replica,
      duration(candidate.cost_s),
      count(candidate.cached_tokens),
      count(candidate.queued_tokens),
      count(candidate.active),
    ].map((text) => element("td", {}, text));
    const className = candidate.replica === replica ? "chosen" : "";
    return element("tr", { className }, ...cells);
  });
  const left = num_candidates - candidates.length;
  if (left > 0) {
    const note = element("td", { colSpan: 5 }, `and ${plural(left, "replica")} at higher cost`);
    rows.push(element("tr", {}, note));
  }
  return rows;
}
