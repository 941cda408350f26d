/** What a model wrote, as text nodes: fenced code gets a box, everything else stays as it is. */

import { element } from "./dom.js";

const FENCE = /^ {0,3}```[^`]*$/;

/** Returns the nodes of a text; an unclosed fence reaches to the end, as it streams in. */
export function textNodes(text) {
  const nodes = [];
  let lines = [];
  let isCode = false;
  const close = () => {
    if (lines.length) nodes.push(isCode ? codeBox(lines) : lines.join("\n"));
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (!FENCE.test(line)) {
      lines.push(line);
      continue;
    }
    close();
    isCode = !isCode;
  }
  close();
  return nodes;
}

function codeBox(lines) {
  return element("pre", { tabIndex: 0 }, element("code", {}, lines.join("\n")));
}
