// Who is signed in. The tokens are in sessionStorage: they survive a reload and end with the tab, which suits shared
// machines. Tabs share a session by BroadcastChannel. A refresh token is good for one use, so only the holder of a Web
// Lock refreshes, and first asks the other tabs for newer tokens: a duplicated tab begins with a copy.

const KEY = "esp-ingest.session";
const ASK_MILLISECONDS = 150;
const EARLY_MILLISECONDS = 60_000; // renewed so long before the end

let tokens = read();
const channel = new BroadcastChannel(KEY);
const listeners = new Set();

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  } catch {
    return null;
  }
}

function keep(found) {
  tokens = found;
  try {
    if (found) sessionStorage.setItem(KEY, JSON.stringify(found));
    else sessionStorage.removeItem(KEY);
  } catch {
    // A browser that keeps nothing: the session lives as long as the page.
  }
}

channel.onmessage = ({ data }) => {
  if (data.kind === "ask" && tokens) channel.postMessage({ kind: "have", tokens });
  if (data.kind === "have" && (!tokens || data.tokens.issued > tokens.issued)) {
    const isFirst = !tokens;
    keep(data.tokens);
    if (isFirst) tell();
  }
  if (data.kind === "out" && tokens) {
    keep(null);
    tell();
  }
};

function tell() {
  for (const listener of listeners) listener(tokens !== null);
}

async function askOthers() {
  channel.postMessage({ kind: "ask" });
  await new Promise((resolve) => setTimeout(resolve, ASK_MILLISECONDS));
}

/** Call `listener(isSignedIn)` when somebody signs in or out, in whichever tab. */
export function onSession(listener) {
  listeners.add(listener);
}

/** Whether there are tokens; a new tab asks the others first. */
export async function isSignedIn() {
  if (!tokens) await askOthers();
  return tokens !== null;
}

/** Keep the tokens of a sign-in, and tell the other tabs. */
export function beginSession(answer) {
  const found = {
    access: answer.access_token,
    refresh: answer.refresh_token ?? null,
    ends: Date.now() + answer.expires_in * 1000,
    issued: Date.now(),
  };
  keep(found);
  channel.postMessage({ kind: "have", tokens: found });
}

/** Sign in with name and password. Throws a Problem. */
export async function signIn(username, password) {
  const answer = await fetch("api/v1/auth/token", { method: "POST", body: new URLSearchParams({ username, password }) });
  if (!answer.ok) throw await problemOf(answer);
  beginSession(await answer.json());
  tell();
}

/** End the session here, in the other tabs and on the server. */
export async function signOut() {
  const refresh = tokens?.refresh;
  forget();
  if (!refresh) return;
  const body = JSON.stringify({ refresh_token: refresh });
  await fetch("api/v1/auth/logout", { method: "POST", body, headers: { "Content-Type": "application/json" } }).catch(() => {});
}

function forget() {
  keep(null);
  channel.postMessage({ kind: "out" });
  tell();
}

const locked = (work) => (navigator.locks ? navigator.locks.request("esp-ingest.refresh", work) : work());

/** Tokens in place of `old`: another tab's, or new ones. */
async function renewed(old) {
  await locked(async () => {
    if (!tokens || tokens.access !== old.access) return;
    await askOthers();
    if (!tokens || tokens.access !== old.access) return;
    if (!tokens.refresh) {
      forget();
      return;
    }
    const body = JSON.stringify({ refresh_token: tokens.refresh });
    const answer = await fetch("api/v1/auth/refresh", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (answer.ok) beginSession(await answer.json());
    else if (answer.status === 401 || answer.status === 404) forget();
    else throw await problemOf(answer);
  });
}

/** An error of the API: `status`, `kind` (the end of its type) and a message that says what to do. */
export class Problem extends Error {
  constructor(status, kind, detail) {
    super(detail);
    this.status = status;
    this.kind = kind;
  }
}

/** The Problem in an answer. */
export async function problemOf(answer) {
  const document = await answer.json().catch(() => ({}));
  const kind = String(document.type ?? "").replace(/^.*:/, "");
  return new Problem(answer.status, kind, document.detail ?? `The API answered ${answer.status}: try again.`);
}

/** fetch() with the access token, which is renewed when it is about to end or is refused; without a refresh token (some
 * OpenID providers give none) it is used to its end. Throws a Problem for whoever
 * is not signed in, and TypeError if the API cannot be reached. */
export async function authorized(address, options = {}) {
  if (tokens?.refresh && tokens.ends - Date.now() < EARLY_MILLISECONDS) await renewed(tokens);
  for (let attempt = 0; ; attempt += 1) {
    const used = tokens;
    if (!used) throw new Problem(401, "signed-out", "Sign in first.");
    const headers = { ...options.headers, Authorization: `Bearer ${used.access}` };
    const answer = await fetch(address, { ...options, headers });
    if (answer.status !== 401 || attempt > 0) {
      if (answer.status === 401) forget();
      return answer;
    }
    await renewed(used);
  }
}
