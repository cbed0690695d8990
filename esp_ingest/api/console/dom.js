// Small helpers to build elements. No text ever becomes HTML, so nothing that a well sends can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: attributes (on… are listeners, null and false are left out) and children. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Put these children in the place of those that are there. */
export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Set the text only if it differs, so that screen readers and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let ids = 0;
/** An id that no other element has. */
export function uniqueId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** A label with its field below it. */
export function field(label, control, hint) {
  control.id ||= uniqueId("field");
  const help = hint && h("small", { id: uniqueId("hint") }, hint);
  if (help) control.setAttribute("aria-describedby", help.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, help);
}

/** A select. `options` are [value, text] pairs. */
export function select(options, value, attributes) {
  return h("select", attributes, options.map(([each, text]) => h("option", { value: each, selected: each === value }, text)));
}

/** Buttons of which one is pressed. `options` are [value, text] pairs; `chosen` is called with the value. */
export function choice(label, options, value, chosen) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  const show = (now) => {
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.value === now));
  };
  for (const [each, text] of options) {
    group.append(h("button", { type: "button", value: each, onclick: () => { show(each); chosen(each); } }, text));
  }
  show(value);
  group.show = show;
  return group;
}

/** Buttons in `place` that turn the pages of a list. The focus stays with them. */
export function pageButtons(place, [first, following], isPaged, next, turn) {
  const button = (text, cursor) => h("button", { type: "button", onclick: () => turn(cursor) }, text);
  const hadFocus = place.contains(document.activeElement);
  replace(place, isPaged && button(first, ""), next && button(following, next));
  if (hadFocus) place.lastElementChild?.focus();
}

/** Call `work` once, `milliseconds` after the last call. */
export function debounced(work, milliseconds) {
  let timer = 0;
  const call = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Call `work` at most once in `milliseconds`, the last call included. */
export function throttled(work, milliseconds) {
  let timer = 0;
  const call = () => {
    timer ||= setTimeout(() => { timer = 0; work(); }, milliseconds);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}

/** Say something to people who cannot see the page, without taking the focus. */
export function announce(text) {
  setText(document.getElementById("announcement"), text);
}
