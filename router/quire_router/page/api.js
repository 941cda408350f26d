/** The router's API: the key, errors in OpenAI's form, and server-sent events. */

const KEY = "quire-api-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  /** Called with the server's words when it wants a key, or another one. */
  onRefused = () => {};

  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  }

  /** Paths are relative to the page, so that it works below a proxy's prefix too. */
  async get(path, { signal } = {}) {
    return this.#fetch(path, { signal });
  }

  async post(path, body, { signal } = {}) {
    const headers = { "content-type": "application/json" };
    return this.#fetch(path, { method: "POST", body: JSON.stringify(body), headers, signal });
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.ok) return response;
    const message = await errorMessage(response);
    if (response.status === 401) this.onRefused(message);
    throw new ApiError(response.status, message);
  }
}

async function errorMessage(response) {
  const fallback = `the server answered ${response.status} ${response.statusText}`.trim();
  try {
    return (await response.json()).error.message ?? fallback;
  } catch {
    return fallback; // a proxy's page, or nothing
  }
}

/** Yields `{name, data}` of each event of a response, however its bytes were cut. */
export async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const text of lines) yield parseEvent(text);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(text) {
  const event = { name: "message", data: "" };
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) event.name = line.slice(7);
    else if (line.startsWith("data: ")) event.data += line.slice(6);
  }
  return event;
}
