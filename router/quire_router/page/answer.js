/** One answer while it streams in: its text, how long it took, and what it cost. */

import { serverEvents } from "./api.js";
import { count, duration, rate } from "./format.js";

export class Answer {
  text = "";
  error = "";
  /** running, done, stopped or failed */
  state = "running";
  #startedAt = performance.now();
  #firstAt = null;
  #lastAt = null;
  #usage = null;
  #isCut = false;
  #controller = new AbortController();

  /** Streams it; `onChange` is called whenever there is more to show. Never throws. */
  async stream(api, body, onChange) {
    try {
      const { signal } = this.#controller;
      const options = { include_usage: true, continuous_usage_stats: true };
      const request = { ...body, stream: true, stream_options: options };
      const response = await api.post("v1/chat/completions", request, { signal });
      await this.#read(response, onChange);
    } catch (error) {
      this.#fail(error);
    }
    onChange();
  }

  stop() {
    this.#controller.abort();
  }

  /** Returns the figures in words, as far as they are known. */
  figures() {
    const parts = [];
    if (this.state === "stopped") parts.push("stopped");
    if (this.#firstAt !== null) parts.push(`first token ${duration(this.#seconds(this.#firstAt))}`);
    if (this.#usage) parts.push(...this.#tokenFigures());
    if (this.#isCut) parts.push("ended at the token limit");
    return parts.join(" · ");
  }

  async #read(response, onChange) {
    let isComplete = false;
    for await (const { data } of serverEvents(response)) {
      if (data === "[DONE]") {
        isComplete = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      this.#take(chunk);
      onChange();
    }
    if (!isComplete) throw new Error("the connection ended before the answer did");
    this.state = "done";
  }

  #take(chunk) {
    const [choice] = chunk.choices;
    const piece = choice?.delta?.content;
    if (piece) {
      this.#lastAt = performance.now();
      this.#firstAt ??= this.#lastAt;
      this.text += piece;
    }
    this.#usage = chunk.usage ?? this.#usage;
    this.#isCut = this.#isCut || choice?.finish_reason === "length";
  }

  #fail(error) {
    if (error.name === "AbortError") {
      this.state = "stopped";
      return;
    }
    this.state = "failed";
    this.error = error instanceof TypeError ? "the router cannot be reached" : error.message;
  }

  #seconds(moment) {
    return (moment - this.#startedAt) / 1000;
  }

  #tokenFigures() {
    const { prompt_tokens, completion_tokens, prompt_tokens_details } = this.#usage;
    const cached = prompt_tokens_details?.cached_tokens ?? 0;
    const parts = [];
    const spent = this.#firstAt === null ? 0 : (this.#lastAt - this.#firstAt) / 1000;
    if (completion_tokens > 1 && spent > 0) {
      parts.push(`${rate((completion_tokens - 1) / spent)} tok/s`);
    }
    parts.push(`${count(completion_tokens)} tokens`);
    parts.push(`prompt ${count(prompt_tokens)}, ${count(cached)} cached`);
    return parts;
  }
}
