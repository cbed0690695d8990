
import { field, h, replace } from "../dom.js";
import { signIn } from "../session.js";

/** Show it in `root`. `trouble` is what went wrong with the sign-in before, if something did. */
export async function open(root, trouble = "") {
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
  replace(place, h("h1", null, "Sign in"), methods.method === "oidc" ? throughProvider(methods, message, () => open(root)) : withPassword(message), message);
  replace(message, trouble); // once the alert is in the page, or it would not be read out
  place.querySelector("input, button")?.focus();
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

function throughProvider(methods, message, again) {
  const name = hostOf(methods.issuer);
  if (!methods.authorization_endpoint) {
    return [h("p", { class: "error", role: "alert" }, `The OpenID provider at ${name} does not answer.`), h("button", { type: "button", onclick: again }, "Try again")];
  }
  const button = h("button", { type: "button", class: "primary" }, `Sign in with ${name}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    replace(message);
    try {
      await (await import("../oidc.js")).leave(methods);
    } catch (error) {
      show(error, message);
    }
    button.disabled = false;
  });
  return [h("p", null, `Users of this console are those of ${methods.issuer}.`), button];
}

function hostOf(address) {
  try {
    return new URL(address).host;
  } catch {
    return address;
  }
}
