// The sign-in page.

import { field, h, replace } from "./dom.js";
import { signIn, useToken } from "./session.js";

/** Show it in `root`. */
export async function open(root) {
  const message = h("p", { class: "error", role: "alert" });
  const place = h("div", { class: "page signin" }, h("h1", null, "Sign in"), h("p", null, "Asking how …"));
  replace(root, place);
  const methods = await fetch("api/v1/auth/methods").then((answer) => (answer.ok ? answer.json() : null), () => null);
  if (!place.isConnected) return;
  if (!methods) {
    replace(place, h("h1", null, "Sign in"), h("p", { class: "error", role: "alert" }, "The API cannot be reached. Is esp-ingest api running?"),
      h("button", { type: "button", onclick: () => open(root) }, "Try again"));
    return;
  }
  replace(place, h("h1", null, "Sign in"), methods.method === "oidc" ? withToken(methods) : withPassword(message), message);
  place.querySelector("input")?.focus();
}

function withPassword(message) {
  const name = h("input", { autocomplete: "username", required: true, maxlength: 200, autocapitalize: "none", spellcheck: "false" });
  const password = h("input", { type: "password", autocomplete: "current-password", required: true, maxlength: 2000 });
  const button = h("button", { class: "primary" }, "Sign in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    replace(message);
    try {
      await signIn(name.value, password.value);
    } catch (error) {
      show(error, message);
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  };
  return h("form", { onsubmit: submit }, field("User", name), field("Password", password), button);
}

function show(error, message) {
  if (error.kind === "no-users") {
    replace(message, "No user has been made yet. Make the first on the host of the API: ",
      h("code", null, "esp-ingest users add NAME --role admin"));
  } else if (error instanceof TypeError) {
    replace(message, "The API cannot be reached: try again.");
  } else {
    replace(message, error.message);
  }
}

function withToken(methods) {
  const token = h("textarea", { required: true, rows: 4, spellcheck: "false", autocomplete: "off" });
  const submit = (event) => {
    event.preventDefault();
    useToken(token.value.trim());
  };
  return h("form", { onsubmit: submit },
    h("p", null, `Users are those of ${methods.issuer}. Get an access token there for the audience ${methods.audience}.`),
    field("Access token", token, "It stays in this tab and ends when the provider says so."),
    h("button", { class: "primary" }, "Use it"));
}
