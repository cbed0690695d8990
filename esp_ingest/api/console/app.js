// The frame of the console: header, routes, the live state, sign-in and sign-out.

import { get, onAway } from "./api.js";
import { choice, h, replace, setText } from "./dom.js";
import { moment, zoneName } from "./format.js";
import { live } from "./live.js";
import { apply, choose, onChoice, prefs } from "./prefs.js";
import { open as openSignIn } from "./pages/signin.js";
import { isSignedIn, onSession, signOut } from "./session.js";

// A page is a module with `open(root, context)`, which gives {close(), query?(query)}. `context`: path, query
// (URLSearchParams), me and setQuery().
const PAGES = {
  fleet: { title: "Fleet", load: () => import("./pages/fleet.js") },
  alarms: { title: "Alarms", load: () => import("./pages/alarms.js") },
  performance: { title: "Performance", load: () => import("./pages/performance.js") },
  operations: { title: "Operations", load: () => import("./pages/operations.js") },
  well: { title: "Well", load: () => import("./pages/well.js"), isHidden: true },
  nowhere: { title: "No such page", load: async () => ({ open: openNowhere }), isHidden: true },
};

const ENTER_MILLISECONDS = 5_000;

const main = document.getElementById("main");
const header = document.getElementById("top");
const notice = document.getElementById("notice");
let me = null;
let shown = null; // {key, page, module}
let turn = 0;

/** {name, path, query} of the address behind #; its name is "nowhere" if it is the address of no page. */
export function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let name;
  let rest;
  try {
    [name, ...rest] = path.split("/").map(decodeURIComponent);
  } catch {
    return { name: "nowhere", path: [path], query: new URLSearchParams() };
  }
  const isPage = Object.hasOwn(PAGES, name) && name !== "nowhere" && (name !== "well" || rest[0]);
  if (name && !isPage) return { name: "nowhere", path: [path], query: new URLSearchParams() };
  return { name: name || "fleet", path: rest, query: new URLSearchParams(query) };
}

function openNowhere(root) {
  replace(root, h("h1", null, "No such page"),
    h("p", { role: "alert" }, `#/${route().path[0]} is the address of no page. `, h("a", { href: "#/fleet" }, "The fleet")));
  return { close() {} };
}

// The page's own file could not be loaded.
function openAway(root) {
  replace(root, h("p", { role: "alert" }, "The API cannot be reached: this page comes once it is back."));
  const timer = setTimeout(reopen, ENTER_MILLISECONDS);
  return { close: () => clearTimeout(timer) };
}

/** Write filters into the address, without empty ones; `isStep`: Back returns from it. */
function setQuery(changes, isStep = true) {
  const { name, path, query } = route();
  for (const [key, value] of Object.entries(changes)) {
    query.delete(key);
    for (const each of Array.isArray(value) ? value : [value]) if (each) query.append(key, each);
  }
  const text = query.toString();
  const hash = `#/${[name, ...path.map(encodeURIComponent)].join("/")}${text && `?${text}`}`;
  if (hash === location.hash) return;
  if (isStep) location.hash = hash;
  else {
    history.replaceState(null, "", hash);
    show();
  }
}

async function show() {
  const mine = ++turn;
  if (!me) return;
  const at = route();
  const key = [at.name, ...at.path].join("/");
  for (const link of header.querySelectorAll("nav a")) {
    if (link.dataset.page === at.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown?.key === key && shown.page.query) {
    shown.page.query(at.query);
    return;
  }
  const module = await PAGES[at.name].load().catch(() => ({ open: openAway }));
  if (mine !== turn) return;
  const isFirst = shown === null;
  shown?.page.close();
  document.title = `${at.name === "well" ? at.path[0] : PAGES[at.name].title} – esp-ingest`;
  const root = h("div", { class: `page ${at.name}` });
  replace(main, root);
  shown = { key, page: module.open(root, { path: at.path, query: at.query, me, setQuery }) };
  if (!isFirst) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function reopen() {
  if (!shown) return;
  shown.page.close();
  shown = null;
  show();
}

const liveText = h("span", { id: "live" });

function showLive() {
  const { state } = live;
  const daemon = live.health?.daemon?.status;
  let text = "Live";
  let problem = "";
  if (state === "connecting") text = "Connecting";
  if (live.databaseLost) {
    text = "No database";
    problem = `No database since ${moment(live.databaseLost)} ${zoneName()}${live.isDatabaseLostSeen ? "" : " or before"}: `
      + "the API answers, but the database does not. Trying again.";
  } else if (state === "lost") {
    text = "Not live";
    problem = `Not live since ${moment(live.since)} ${zoneName()}: what you see is from then. ${live.trouble} Trying again.`;
  } else if (state === "live" && daemon === "failing") {
    problem = "The daemon says that something is wrong. Operations has the details.";
  }
  liveText.dataset.state = problem ? "lost" : state;
  setText(liveText, text);
  setText(notice, problem);
  document.body.classList.toggle("stale", state === "lost" || live.databaseLost !== null);
}

function drawHeader() {
  const pages = Object.entries(PAGES).filter(([, page]) => !page.isHidden);
  replace(header,
    h("a", { class: "brand", href: "#/fleet" }, "esp-ingest"),
    h("nav", { "aria-label": "Pages" }, pages.map(([name, page]) => h("a", { href: `#/${name}`, "data-page": name }, page.title))),
    liveText,
    h("details", { class: "menu" },
      h("summary", null, me.name),
      h("div", { class: "menu-body" },
        h("p", null, `${me.role}, sees ${me.wells.includes("*") ? "all wells" : me.wells.join(", ")}`),
        choice("Units", [["field", "Field units"], ["metric", "Metric"]], prefs.units, (value) => choose("units", value)),
        choice("Time zone", [["utc", "UTC"], ["local", "Local time"]], prefs.zone, (value) => choose("zone", value)),
        choice("Colours", [["auto", "As system"], ["light", "Light"], ["dark", "Dark"]], prefs.theme, (value) => choose("theme", value)),
        h("p", null, h("a", { href: "docs" }, "API description")),
        h("button", { type: "button", onclick: signOut }, "Sign out"))));
}

document.addEventListener("click", (event) => {
  const menu = header.querySelector("details.menu[open]");
  if (menu && !menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = header.querySelector("details.menu[open]");
  if (event.key === "Escape" && menu) {
    menu.open = false;
    menu.firstElementChild.focus();
  }
});

function showSignIn(trouble) {
  turn += 1;
  shown?.page.close();
  shown = null;
  me = null;
  clearTimeout(entering);
  live.stop();
  replace(header, h("span", { class: "brand" }, "esp-ingest"));
  setText(notice, "");
  document.body.classList.remove("stale");
  document.title = "Sign in – esp-ingest";
  openSignIn(main, trouble);
}

let entering = 0;

async function enter() {
  clearTimeout(entering);
  let found;
  try {
    found = await get("me");
  } catch (error) {
    if (error.status === 401) return;
    replace(main, h("div", { class: "page" }, h("p", { role: "alert" }, `The console cannot be opened yet: ${error.message} `, h("button", { type: "button", onclick: enter }, "Try again"))));
    entering = setTimeout(enter, ENTER_MILLISECONDS);
    return;
  }
  if (me) return;
  me = found;
  drawHeader();
  live.start();
  showLive();
  replace(main);
  show();
}

async function begin() {
  apply();
  const trouble = location.search ? await (await import("./oidc.js")).comeBack() : "";
  if (await isSignedIn()) await enter();
  else showSignIn(trouble);
}

addEventListener("hashchange", () => {
  if (location.hash === "#main") {
    main.focus();
    return;
  }
  show();
});
live.on("state", showLive);
live.on("health", showLive);
onAway(() => live.hurry());
addEventListener("online", () => live.hurry());
onSession((isIn) => (isIn ? enter() : showSignIn()));
onChoice((name) => {
  showLive();
  if (name !== "theme" || route().name === "well") reopen();
});
begin();
