/** A small plot of the last minutes: an area under a curve, drawn as SVG. */

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 180;
const HEIGHT = 36;

export class Plot {
  #title;
  #show;
  #floor;
  #values = [];
  #caption = element("figcaption");
  #svg = document.createElementNS(SVG, "svg");
  #area = path("area");
  #curve = path("curve");

  /** `show` writes a value; the scale reaches at least `floor`. */
  constructor(title, show, floor) {
    this.#title = title;
    this.#show = show;
    this.#floor = floor;
    this.#svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.#svg.setAttribute("preserveAspectRatio", "none");
    this.#svg.setAttribute("role", "img");
    this.#svg.append(this.#area, this.#curve);
    this.root = element("figure", {}, this.#caption, this.#svg);
  }

  set(values) {
    this.#values = values.slice(-WIDTH);
    this.#draw();
  }

  add(value) {
    this.set([...this.#values, value]);
  }

  #draw() {
    const now = this.#show(this.#values.at(-1) ?? 0);
    const most = Math.max(0, ...this.#values);
    const scale = Math.max(this.#floor, most);
    this.#caption.textContent = `${this.#title}, max ${this.#show(most)}`;
    this.#svg.setAttribute(
      "aria-label",
      `${this.#title} over the last minutes: now ${now}, at most ${this.#show(most)}`,
    );
    const start = WIDTH - this.#values.length;
    const points = this.#values.map((value, position) => {
      const height = HEIGHT - 1 - (value / scale) * (HEIGHT - 2);
      return `${start + position + 0.5} ${height.toFixed(2)}`;
    });
    const curve = points.length ? `M${points.join("L")}` : "";
    this.#curve.setAttribute("d", curve);
    const closing = `L${WIDTH - 0.5} ${HEIGHT}L${start + 0.5} ${HEIGHT}Z`;
    this.#area.setAttribute("d", curve && curve + closing);
  }
}

function path(name) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", name);
  return made;
}
