// What an operator does about alarms, in one dialog: acknowledge, shelve, unshelve, note, verdict.

import { post } from "../api.js";
import { announce, field, h, replace, select } from "../dom.js";
import { count, ruleName } from "../format.js";

const why = (isNeeded, label = "Why") => ({ name: "why", label, isNeeded, hint: "Kept in the history beside your name." });
const KINDS = {
  ack: { title: "Acknowledge", done: "acknowledged", fields: [why(false)] },
  shelve: {
    title: "Shelve", done: "shelved",
    hint: "A shelved alarm stays silent for this well until the time is over; the rule keeps running.",
    fields: [
      { name: "duration", label: "For", options: [["1h", "1 hour"], ["4h", "4 hours"], ["8h", "8 hours"], ["24h", "1 day"], ["3d", "3 days"], ["7d", "7 days"], ["30d", "30 days"]], value: "8h" },
      why(true),
    ],
  },
  unshelve: { title: "Unshelve", done: "unshelved", fields: [why(false)] },
  note: { title: "Note", done: "noted", fields: [why(true, "Remark")] },
  verdict: {
    title: "Verdict", done: "judged",
    hint: "Was the alarm right? Verdicts show how far each rule can be trusted (Performance).",
    fields: [
      { name: "verdict", label: "The alarm was", options: [["true", "correct"], ["false", "a false alarm"], ["unclear", "unclear"]], value: "true" },
      { name: "cause", label: "Cause", hint: "What it was, such as gas slug." },
      { name: "stop_reason", label: "Why the well stopped", hint: "If it did." },
      why(false, "How do you know?"),
    ],
  },
};

/** The actions in the order of the buttons: [kind, title]. */
export const ACTIONS = Object.entries(KINDS).map(([kind, { title }]) => [kind, title]);

/** Whether this person may act. */
export const mayAct = (me) => me.role !== "viewer";

/** Ask for the details and do it to these alarms. Gives true if something was done. */
export function act(kind, alarms) {
  const { title, hint, fields, done } = KINDS[kind];
  const message = h("p", { class: "error", role: "alert" });
  const controls = fields.map((each) => ({ ...each, control: controlOf(each) }));
  const submit = h("button", { class: "primary" }, title);
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" });
  return new Promise((resolve) => {
    let isDone = false;
    const send = async (event) => {
      event.preventDefault();
      submit.disabled = true;
      replace(message);
      try {
        const items = alarms.map(({ well_id, diagnosis, timestamp }) => ({ well_id, diagnosis, timestamp }));
        const said = Object.fromEntries(controls.map(({ name, control }) => [name, control.value.trim()]));
        const answer = await post(`alarms/${kind}`, { items, ...said });
        const changed = answer.items.filter((item) => item.outcome === "done").length;
        const others = answer.items.length - changed;
        announce(`${count(changed)} ${done}${others ? `; ${count(others)} unchanged, as there was nothing to do` : ""}.`);
        isDone = true;
        dialog.close();
      } catch (error) {
        replace(message, error.message);
        submit.disabled = false;
      }
    };
    replace(dialog, h("form", { onsubmit: send },
      h("h2", { id: "dialog-title" }, `${title}: ${subject(alarms)}`),
      hint && h("p", { class: "muted" }, hint),
      controls.map((each) => field(each.label + (each.isNeeded ? " (needed)" : ""), each.control, each.hint)),
      message,
      h("div", { class: "bar" }, submit, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(isDone);
    });
    document.body.append(dialog);
    dialog.showModal();
    controls[0].control.focus();
  });
}

function controlOf({ options, value, isNeeded, name }) {
  if (options) return select(options, value, { name });
  return h("textarea", { name, rows: name === "why" ? 2 : 1, maxlength: 1000, required: isNeeded });
}

function subject(alarms) {
  return alarms.length === 1 ? `${ruleName(alarms[0].diagnosis)} at ${alarms[0].well_id}` : `${count(alarms.length)} alarms`;
}
