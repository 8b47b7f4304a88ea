"use strict";
// One way to ask, `call(tool, arguments)`, and two carriers: a host's frame (MCP Apps), or the server of `sandpoint ui`.

const NO_ANSWER = "NO_ANSWER";
const REVISION = "2026-07-28";
const ENVELOPE = {
  "io.modelcontextprotocol/protocolVersion": REVISION,
  "io.modelcontextprotocol/clientInfo": { name: "sandpoint-timeline", version: "1" },
  "io.modelcontextprotocol/clientCapabilities": {},
};

/** A failed call: the server's code, and what it says to do. */
class CallError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Return what a tool returned, or throw the error that it told. */
function unwrap(result) {
  const text = (result.content ?? []).find((block) => block.type === "text")?.text ?? "";
  if (result.isError) {
    const [, code, message] = /^([A-Z][A-Z_]+): ([^]*)$/.exec(text) ?? [null, "ERROR", text];
    throw new CallError(result._meta?.["sandpoint/code"] ?? code, message || "The call failed and said no reason.");
  }
  if (result.structuredContent) return result.structuredContent;
  try {
    return JSON.parse(text);
  } catch {
    throw new CallError(NO_ANSWER, "The server's answer is none that this page knows; are both of one version?");
  }
}

/** Speaks to the server of `sandpoint ui`. The key is this window's alone: other ports of this machine never see it. */
class Server {
  #key = sessionStorage.getItem("sandpoint-key");
  #lastId = 0;

  mode = "window";

  /** Exchange the link's token, which works once, for a key; return what the page is to show. */
  async open() {
    const address = new URLSearchParams(location.hash.slice(1));
    const token = address.get("token");
    if (token) {
      address.delete("token");
      history.replaceState(null, "", `${location.pathname}${address.size ? `#${address}` : ""}`);
      sessionStorage.removeItem("sandpoint-key");
      this.#key = null;
    }
    const response = await this.#post("session", token ? { token } : {});
    const answer = await response.json();
    if (answer.key) {
      this.#key = answer.key;
      sessionStorage.setItem("sandpoint-key", answer.key);
    }
    return { dir: (address.get("dir") ?? answer.dir) || null, writes: true };
  }

  /** Keep in the address what is shown, for the next reload. */
  show(dir) {
    history.replaceState(null, "", `#${new URLSearchParams({ dir: dir ?? "" })}`);
  }

  async call(tool, args, { signal, progress } = {}) {
    this.#lastId += 1;
    const id = this.#lastId;
    const params = { name: tool, arguments: args, _meta: { ...ENVELOPE, progressToken: id } };
    const headers = { "MCP-Protocol-Version": REVISION, "Mcp-Method": "tools/call", "Mcp-Name": tool };
    const response = await this.#post("mcp", { jsonrpc: "2.0", id, method: "tools/call", params }, { headers, signal });
    let answer;
    try {
      // To the end: a connection that was read out serves the next call too.
      for await (const message of messages(response)) {
        if (message.method === "notifications/progress") progress?.(message.params.message ?? "");
        if (message.id === id) answer = message;
      }
    } catch (error) {
      if (signal?.aborted) throw error;
    }
    if (answer?.error) throw new CallError(NO_ANSWER, answer.error.message);
    if (answer) return unwrap(answer.result);
    throw new CallError(NO_ANSWER, "The server ended before it answered; what it had begun was cleaned up.");
  }

  async #post(path, body, { headers = {}, signal } = {}) {
    headers = { ...headers, "Content-Type": "application/json", Accept: "application/json, text/event-stream" };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    let response;
    try {
      response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new CallError(NO_ANSWER, "The server does not answer. If it was stopped, start it again with: sandpoint ui");
    }
    if (response.ok) return response;
    const told = await response.text();
    throw new CallError(response.status === 401 ? "LINK_USED" : `HTTP_${response.status}`, told || response.statusText);
  }
}

/** The JSON-RPC messages of an answer: one, or a stream of events with the answer last. */
async function* messages(response) {
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    yield await response.json();
    return;
  }
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.join("")) yield JSON.parse(data.join("\n"));
    }
  }
}

/** Speaks to a host that shows this page in a frame, by the MCP Apps specification of 2026-01-26. */
class Host {
  #pending = new Map();
  #lastId = 0;
  #shown;
  #show;
  #context = {};
  #capabilities = {};

  mode = "frame";

  constructor() {
    this.#shown = new Promise((resolve, reject) => (this.#show = { resolve, reject }));
    this.#shown.catch(() => {});
    addEventListener("message", (event) => {
      if (event.source === window.parent && event.data?.jsonrpc === "2.0") this.#receive(event.data);
    });
  }

  /** Shake hands; return what the tool that shows this page was asked for, with the list it returned. */
  async open() {
    const answer = await this.#request("ui/initialize", {
      protocolVersion: "2026-01-26",
      appInfo: { name: "sandpoint-timeline", title: "Sandpoint", version: "1" },
      appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
    });
    this.#capabilities = answer.hostCapabilities ?? {};
    this.#take(answer.hostContext ?? {});
    this.#send({ method: "ui/notifications/initialized" });
    new ResizeObserver(() => this.#tellSize()).observe(document.documentElement);
    return { ...(await this.#shown), writes: Boolean(this.#capabilities.serverTools) };
  }

  async call(tool, args, { signal } = {}) {
    signal?.throwIfAborted();
    const answer = await this.#request("tools/call", { name: tool, arguments: args });
    signal?.throwIfAborted();
    return unwrap(answer);
  }

  /** Let the model know what the user did here; a host that takes no such news is not told. */
  async tellModel(text) {
    if (!this.#capabilities.updateModelContext) return;
    await this.#request("ui/update-model-context", { content: [{ type: "text", text }] }).catch(() => {});
  }

  get canFill() {
    return this.#context.displayMode !== "fullscreen" && Boolean(this.#context.availableDisplayModes?.includes("fullscreen"));
  }

  async fill() {
    const { mode } = await this.#request("ui/request-display-mode", { mode: "fullscreen" });
    this.#take({ displayMode: mode });
  }

  #receive(message) {
    if (message.method && message.id !== undefined) {
      const known = message.method === "ping" || message.method === "ui/resource-teardown";
      this.#send({ id: message.id, ...(known ? { result: {} } : { error: { code: -32601, message: "Unknown method" } }) });
    } else if (message.method) {
      this.#notice(message.method, message.params ?? {});
    } else if (this.#pending.has(message.id)) {
      const { resolve, reject } = this.#pending.get(message.id);
      this.#pending.delete(message.id);
      if (message.error) reject(new CallError(NO_ANSWER, message.error.message ?? "The host refused."));
      else resolve(message.result ?? {});
    }
  }

  #notice(method, params) {
    if (method === "ui/notifications/tool-input") this.#input = params.arguments ?? {};
    if (method === "ui/notifications/host-context-changed") this.#take(params);
    if (method === "ui/notifications/tool-cancelled") {
      this.#show.reject(new CallError("CANCELLED", `The list was not read: ${params.reason ?? "the call was cancelled"}.`));
    }
    if (method === "ui/notifications/tool-result") {
      try {
        this.#show.resolve({ dir: this.#input.dir ?? null, page: unwrap(params) });
      } catch (error) {
        this.#show.reject(error);
      }
    }
  }

  #input = {};

  #take(context) {
    this.#context = { ...this.#context, ...context };
    const { theme, styles, locale: language, containerDimensions: room, displayMode } = this.#context;
    const root = document.documentElement;
    if (theme === "light" || theme === "dark") root.style.colorScheme = theme;
    for (const [name, value] of Object.entries(styles?.variables ?? {})) {
      if (/^--(color|font)-[a-z0-9-]+$/.test(name) && typeof value === "string") root.style.setProperty(name, value);
    }
    if (language) setLocale(language);
    const isFixed = displayMode === "fullscreen" || room?.height !== undefined;
    root.style.height = isFixed ? "100vh" : `${Math.min(room?.maxHeight ?? 620, 620)}px`;
    document.dispatchEvent(new Event("host-context"));
    if (!isFixed) this.#tellSize();
  }

  #tellSize() {
    const { width, height } = document.documentElement.getBoundingClientRect();
    this.#send({ method: "ui/notifications/size-changed", params: { width: Math.ceil(width), height: Math.ceil(height) } });
  }

  #request(method, params) {
    this.#lastId += 1;
    const id = this.#lastId;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#send({ id, method, params });
    });
  }

  #send(message) {
    // The host's origin is not told to a page in a sandbox.
    window.parent.postMessage({ jsonrpc: "2.0", ...message }, "*");
  }
}

const carrier = window.parent === window ? new Server() : new Host();

function call(tool, args, options) {
  return carrier.call(tool, args, options);
}
