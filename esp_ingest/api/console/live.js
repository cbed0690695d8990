// The live stream by fetch(), because EventSource cannot send a token. It comes back by itself with Last-Event-ID.

import { authorized, problemOf } from "./session.js";

const QUIET_MILLISECONDS = 40_000; // the server sends a ping every 15 s
const LONGEST_PAUSE_MILLISECONDS = 15_000;
const PATIENCE_MILLISECONDS = 1_500; // a stream that is renewed within it was never lost

/** Splits text/event-stream into {event, id, data} as its pieces come. */
export class EventParser {
  constructor(emit) {
    this.emit = emit;
    this.rest = "";
    this.clear();
  }

  clear() {
    this.event = { event: "message", id: "", data: [] };
  }

  push(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    for (const line of lines) this.line(line.replace(/\r$/, ""));
  }

  line(line) {
    if (line === "") {
      if (this.event.data.length) this.emit({ ...this.event, data: this.event.data.join("\n") });
      this.clear();
      return;
    }
    const at = line.indexOf(":");
    const name = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (name === "data") this.event.data.push(value);
    else if (name === "event" || name === "id") this.event[name] = value;
  }
}

class Live extends EventTarget {
  /** "off", "connecting", "live" or "lost". */
  state = "off";
  since = null;
  health = null;
  /** Why it is lost, as a sentence. */
  trouble = "";
  /** When the database was found away, null while it answers. */
  databaseLost = null;
  /** Whether it had answered until then. */
  isDatabaseLostSeen = false;
  #lastId = "";
  #abort = null;
  #run = 0;
  #wake = () => {};
  #failures = 0;

  /** Begin, if it has not begun. */
  start() {
    if (this.state !== "off") return;
    this.#run += 1;
    this.since = Date.now();
    this.#set("connecting");
    this.#loop(this.#run);
  }

  /** End; what was known is forgotten. */
  stop() {
    this.#run += 1;
    this.#abort?.abort();
    this.#lastId = "";
    this.health = null;
    this.databaseLost = null;
    this.#set("off");
  }

  /** A request has just found the API away, or back: look at once. */
  hurry() {
    this.#wake();
  }

  /** Listen to readings, alarms, health, reset or "state". Gives a function that ends it. */
  on(kind, listener) {
    const call = (event) => listener(event.detail);
    this.addEventListener(kind, call);
    return () => this.removeEventListener(kind, call);
  }

  #setDatabase(isThere) {
    if (isThere === (this.databaseLost === null)) return;
    this.isDatabaseLostSeen = !isThere && this.health?.database === "ok";
    this.databaseLost = isThere ? null : Date.now();
    if (isThere) this.#tell("reset", {});
    this.#tell("state", this.state);
  }

  #set(state) {
    if (this.state === state) return;
    this.state = state;
    this.#tell("state", state);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  async #loop(run) {
    while (run === this.#run) {
      const patience = setTimeout(() => {
        if (run !== this.#run) return;
        if (this.state !== "lost") this.trouble = "The API does not answer.";
        this.#set("lost");
      }, PATIENCE_MILLISECONDS);
      try {
        await this.#stream(run, () => clearTimeout(patience));
        this.#failures = 0;
      } catch (error) {
        if (run !== this.#run) return;
        this.#failures += 1;
        if (error.status === 401) return; // signed out: the page shows the sign-in
        this.trouble = error.status ? error.message : "The API does not answer.";
        if (error.status) this.#setDatabase(error.kind !== "database-unavailable");
        else this.databaseLost = null;
      } finally {
        clearTimeout(patience);
      }
      if (run !== this.#run) return;
      if (this.#failures > 0) {
        this.#set("lost");
        this.#tell("state", this.state);
      }
      const pause = Math.min(1_000 * 2 ** (this.#failures - 1), LONGEST_PAUSE_MILLISECONDS);
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, this.#failures === 0 ? 100 : pause * (0.75 + Math.random() / 2));
      });
    }
  }

  async #stream(run, connected) {
    this.#abort = new AbortController();
    const headers = { Accept: "text/event-stream", ...(this.#lastId && { "Last-Event-ID": this.#lastId }) };
    let quiet = setTimeout(() => this.#abort.abort(), QUIET_MILLISECONDS);
    try {
      const answer = await authorized("api/v1/stream", { headers, signal: this.#abort.signal, cache: "no-store" });
      if (!answer.ok) throw await problemOf(answer);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new EventParser((event) => this.#take(event));
      for (;;) {
        const { done, value } = await reader.read();
        if (run !== this.#run || done) return;
        connected();
        clearTimeout(quiet);
        const { signal } = this.#abort;
        const controller = this.#abort;
        quiet = setTimeout(() => signal.aborted || controller.abort(), QUIET_MILLISECONDS);
        const wasLost = this.state === "lost";
        this.since = Date.now();
        this.#failures = 0;
        this.#set("live");
        parser.push(value);
        if (wasLost) this.#tell("reset", {}); // lists that failed meanwhile are asked for again
      }
    } finally {
      clearTimeout(quiet);
    }
  }

  #take({ event, id, data }) {
    if (id) this.#lastId = id;
    const detail = JSON.parse(data);
    if (event === "hello" || event === "health") {
      if (detail.database) this.#setDatabase(detail.database === "ok");
      this.health = detail;
      this.#tell("health", detail);
    } else {
      this.#tell(event, detail);
    }
  }
}

/** The one stream of this page. */
export const live = new Live();
