// What a person chose for this browser: units, time zone and colours. Nothing secret; kept in localStorage.

const DEFAULTS = { units: "field", zone: "utc", theme: "auto" };
const KEY = "esp-ingest.preferences";
const listeners = new Set();

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {};
  }
}

/** The preferences as they are now. */
export const prefs = { ...DEFAULTS, ...stored() };

/** Choose one, keep it, and tell whoever listens. */
export function choose(name, value) {
  prefs[name] = value;
  try {
    localStorage.setItem(KEY, JSON.stringify(prefs));
  } catch {
    // A browser that keeps nothing: the choice holds for this page.
  }
  apply();
  for (const listener of listeners) listener(name);
}

/** Call `listener(name)` after each choice. Gives a function that ends it. */
export function onChoice(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const darkSystem = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
export function isDark() {
  return prefs.theme === "auto" ? darkSystem.matches : prefs.theme === "dark";
}

/** Put the colours into force. */
export function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
}

darkSystem.addEventListener("change", () => {
  apply();
  for (const listener of listeners) listener("theme");
});
