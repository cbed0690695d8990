// A table of alarms to choose, act on and unfold: on the alarms page and on the page of a well.

import { ACTIONS, act, mayAct } from "./actions.js";
import { cursorOf, get, persistent } from "../api.js";
import { h, pageButtons, replace, setText, throttled, uniqueId } from "../dom.js";
import { explanation, partsOf } from "./explain.js";
import { WAITING, count, ruleName, severityMark, timeElement } from "../format.js";
import { live } from "../live.js";

const PAGE_ALARMS = 50;
const keyOf = (alarm) => `${alarm.well_id} ${alarm.diagnosis} ${alarm.timestamp}`;

export class AlarmList {
  /** `options`: parameters() of the request, next(cursor) to turn the page, isPaged(), isOfWell (leaves out the well). */
  constructor(context, options) {
    this.context = context;
    this.options = options;
    this.items = [];
    this.chosen = new Set();
    this.unfolded = new Set();
    this.asked = null;
    this.found = h("p", { class: "found", role: "status" });
    this.body = h("tbody");
    this.all = h("input", { type: "checkbox", "aria-label": "Choose all that are shown", onchange: () => this.chooseAll() });
    this.buttons = ACTIONS.map(([kind, title]) => h("button", { type: "button", value: kind, disabled: true, onclick: () => this.act(kind) }, title));
    this.pager = h("div", { class: "pager" });
    this.chosenText = h("span", { class: "muted" });
    const bar = mayAct(context.me)
      ? h("div", { class: "bar", role: "group", "aria-label": "Act on the chosen alarms" }, this.buttons, this.chosenText)
      : h("p", { class: "muted" }, "You may look at alarms. To act on them one needs the role operator.");
    const heading = (text) => h("th", { scope: "col" }, text);
    this.isKnown = false;
    this.found.textContent = "Reading the alarms …";
    this.scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Alarms", "aria-busy": "true", hidden: true }, h("table", { class: "alarms-table" },
      h("thead", null, h("tr", null, mayAct(context.me) && h("th", { scope: "col", class: "choose" }, this.all), heading("Severity"), !options.isOfWell && heading("Well"), heading("Alarm"), heading("State"), heading("Raised"), heading("Evidence"))),
      this.body));
    this.element = h("div", { class: "alarm-list" }, bar, this.found, this.scroll, this.pager);
    const reload = throttled(() => this.load(), 1_500);
    this.load = persistent("The alarms", () => this.read(), (text) => {
      this.found.classList.add("error");
      setText(this.found, `${text}${this.isKnown ? " The list is as it was before." : ""}`);
    });
    this.ends = [live.on("alarms", reload), live.on("reset", reload), () => reload.cancel(), this.load.cancel];
  }

  close() {
    this.asked?.abort();
    for (const end of this.ends) end();
  }

  async read() {
    this.asked?.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    this.scroll.setAttribute("aria-busy", "true");
    try {
      const page = await get("alarms", { limit: PAGE_ALARMS, ...this.options.parameters() }, signal);
      this.items = page.items;
      this.isKnown = true;
      this.found.classList.remove("error");
      this.scroll.hidden = page.items.length === 0;
      this.draw();
      const next = cursorOf(page.next);
      setText(this.found, page.items.length === 0 ? (this.options.isOfWell ? "This well has no alarms." : "No alarm fits these filters.") : `${count(page.items.length)}${next || this.options.isPaged() ? " on this page" : ""}, newest first`);
      pageButtons(this.pager, ["Newest", "Older"], this.options.isPaged(), next, this.options.next);
    } finally {
      if (!signal.aborted) this.scroll.removeAttribute("aria-busy");
    }
  }

  draw() {
    const focused = document.activeElement?.closest("tr")?.dataset.alarm;
    const which = focused && this.controlsOf(focused).indexOf(document.activeElement);
    const known = new Set(this.items.map(keyOf));
    this.chosen = new Set([...this.chosen].filter((key) => known.has(key)));
    replace(this.body, this.items.map((alarm) => this.rows(alarm)));
    if (focused && which >= 0) this.controlsOf(focused)[which]?.focus({ preventScroll: true });
    this.showChosen();
  }

  controlsOf(key) {
    return [...this.body.querySelectorAll(`tr[data-alarm="${CSS.escape(key)}"] :is(input, button, a)`)];
  }

  rows(alarm) {
    const key = keyOf(alarm);
    const isWaiting = WAITING.has(alarm.state);
    const id = uniqueId("why");
    const more = h("tr", { class: "unfolded", id, hidden: true });
    const box = mayAct(this.context.me) && h("input", { type: "checkbox", checked: this.chosen.has(key), "aria-label": `Choose ${ruleName(alarm.diagnosis)} at ${alarm.well_id}`, onchange: (event) => this.choose(key, event.target.checked) });
    const fold = h("button", { type: "button", class: "fold", "aria-expanded": "false", "aria-controls": id, onclick: () => unfold(more.hidden) }, ruleName(alarm.diagnosis));
    const unfold = (isOpen) => {
      fold.setAttribute("aria-expanded", String(isOpen));
      more.hidden = !isOpen;
      if (isOpen) {
        this.unfolded.add(key);
        if (!more.firstChild) more.append(h("td", { colspan: 7 }, explanation(alarm)));
      } else this.unfolded.delete(key);
    };
    if (this.unfolded.has(key)) unfold(true);
    const row = h("tr", { "data-alarm": key, class: isWaiting ? "waiting" : null },
      box && h("td", { class: "choose" }, box),
      h("td", null, severityMark(alarm.severity, isWaiting, true)),
      !this.options.isOfWell && h("th", { scope: "row", class: "at" }, h("a", { href: `#/well/${encodeURIComponent(alarm.well_id)}` }, alarm.well_id)),
      h("td", { class: "what" }, fold),
      h("td", { class: "at" }, stateText(alarm)),
      h("td", { class: "at" }, timeElement(alarm.timestamp)),
      h("td", { class: "wide" }, partsOf(alarm.message).seen));
    return [row, more];
  }

  choose(key, isChosen) {
    if (isChosen) this.chosen.add(key);
    else this.chosen.delete(key);
    this.showChosen();
  }

  chooseAll() {
    this.chosen = new Set(this.all.checked ? this.items.map(keyOf) : []);
    for (const row of this.body.querySelectorAll("tr[data-alarm]")) row.querySelector("input").checked = this.all.checked;
    this.showChosen();
  }

  showChosen() {
    const number = this.chosen.size;
    this.all.checked = number > 0 && number === this.items.length;
    this.all.indeterminate = number > 0 && number < this.items.length;
    for (const button of this.buttons) button.disabled = number === 0;
    setText(this.chosenText, number === 0 ? "Choose alarms to act on." : `${count(number)} chosen`);
  }

  async act(kind) {
    const alarms = this.items.filter((alarm) => this.chosen.has(keyOf(alarm)));
    if (!(await act(kind, alarms))) return;
    this.chosen.clear();
    await this.load();
    // The focus was on a button that is disabled now.
    (this.controlsOf(keyOf(alarms[0]))[0] ?? (this.scroll.hidden ? document.getElementById("main") : this.scroll)).focus();
  }
}

function stateText(alarm) {
  const text = alarm.state.replaceAll("_", " ").replaceAll("-", ", ");
  const notes = [alarm.cleared_at && "cleared", alarm.verdict && `verdict: ${alarm.verdict}`].filter(Boolean);
  return [text, notes.length > 0 && h("small", null, ` ${notes.join(", ")}`)];
}
