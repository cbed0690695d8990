// Signing in through an OpenID provider: code flow with PKCE. The API exchanges the code; this asks no other host.

import { beginSession, problemOf } from "./session.js";

const KEY = "esp-ingest.oidc";

const encoded = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = () => encoded(crypto.getRandomValues(new Uint8Array(32)));
const home = () => new URL(".", location.href).href; // without query and fragment

/** Go to the provider that /auth/methods names. Throws an Error that says what to do. */
export async function leave(methods) {
  if (!crypto.subtle) throw new Error("Browsers sign in through a provider over https only: open this page with https.");
  const verifier = random();
  const begun = { state: random(), nonce: random(), verifier, issuer: methods.issuer, hash: location.hash };
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  try {
    sessionStorage.setItem(KEY, JSON.stringify(begun));
  } catch {
    throw new Error("This browser keeps nothing for this page: allow it to store data, and try again.");
  }
  const address = new URL(methods.authorization_endpoint);
  const asked = {
    response_type: "code", client_id: methods.client_id, redirect_uri: home(), scope: methods.scope, state: begun.state,
    nonce: begun.nonce, code_challenge: encoded(new Uint8Array(digest)), code_challenge_method: "S256",
  };
  for (const [name, value] of Object.entries(asked)) address.searchParams.set(name, value);
  location.assign(address);
}

function taken() {
  try {
    const begun = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
    sessionStorage.removeItem(KEY);
    return begun;
  } catch {
    return null;
  }
}

/** Back from the provider: sign in. Gives what went wrong, "" for nothing. */
export async function comeBack() {
  const given = new URLSearchParams(location.search);
  if (!given.has("state")) return "";
  const begun = taken();
  history.replaceState(null, "", location.pathname + (begun?.hash ?? "")); // the code is not for the history
  if (!begun || begun.state !== given.get("state") || (given.get("iss") ?? begun.issuer) !== begun.issuer) {
    return "That was the answer to a sign-in which did not begin in this tab: sign in here.";
  }
  if (given.has("error")) return `The provider refused the sign-in (${given.get("error")}): sign in again, or ask who runs it.`;
  const body = JSON.stringify({ code: given.get("code") ?? "", code_verifier: begun.verifier, redirect_uri: home(), nonce: begun.nonce });
  try {
    const answer = await fetch("api/v1/auth/oidc", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    if (!answer.ok) return (await problemOf(answer)).message;
    beginSession(await answer.json());
  } catch {
    return "The API cannot be reached: sign in again.";
  }
  return "";
}
