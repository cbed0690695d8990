// Requests to the API, as JSON.

import { authorized, problemOf, Problem } from "./session.js";

const BASE = "api/v1/";
const away = new Set();

/** Call `listener()` when a request finds that the API cannot be reached. */
export function onAway(listener) {
  away.add(listener);
}

async function asked(address, options) {
  let answer;
  try {
    answer = await authorized(address, options);
  } catch (error) {
    if (error instanceof TypeError) {
      for (const listener of away) listener();
      throw new Problem(0, "away", "The API cannot be reached.");
    }
    throw error;
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer.status === 204 ? null : answer.json();
}

/** The query of these parameters: lists repeat their name, what is empty is left out. */
export function queryOf(parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters ?? {})) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") query.append(name, each);
    }
  }
  return query;
}

/** GET. Throws a Problem; AbortError if `signal` is aborted. */
export function get(path, parameters, signal) {
  const query = queryOf(parameters).toString();
  return asked(BASE + path + (query && `?${query}`), { signal });
}

/** POST of a JSON body. Throws a Problem. */
export function post(path, body) {
  return asked(BASE + path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

/** Why a list or a figure is not there, as a sentence. */
export const unread = (what, error) => `${what} could not be read: ${error.message}`;

/** Whether asking again in some seconds may help. */
export const isPassing = (error) => error.status === 0 || error.status === 503;

/** `load`, which asks again after five seconds if that may help. `failed` gets the sentence that says why. */
export function persistent(what, load, failed) {
  let timer = 0;
  const run = async () => {
    clearTimeout(timer);
    try {
      await load();
    } catch (error) {
      if (error.name === "AbortError") return;
      failed(unread(what, error));
      if (isPassing(error)) timer = setTimeout(run, 5_000);
    }
  };
  run.cancel = () => clearTimeout(timer);
  return run;
}

/** The cursor in a next link, or "". */
export function cursorOf(next) {
  return next ? (new URL(next, location.href).searchParams.get("cursor") ?? "") : "";
}

/** Run `work` for each item, at most `most` at a time. */
export function limited(most) {
  let running = 0;
  const waiting = [];
  const next = () => {
    if (running >= most || waiting.length === 0) return;
    running += 1;
    waiting.shift()().finally(() => { running -= 1; next(); });
  };
  return (work) => new Promise((resolve, reject) => {
    waiting.push(() => work().then(resolve, reject));
    next();
  });
}

export { Problem };
