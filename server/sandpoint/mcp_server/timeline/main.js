"use strict";
// The start, and the keys.

async function start() {
  rows.clear();
  Object.assign(state, { backups: [], cursor: null, selected: null, failure: null });
  $("list").replaceChildren();
  $("detail").replaceChildren();
  $("end").replaceChildren(make("p", { class: "quiet" }, "Reading the backups…"));
  $("list").setAttribute("aria-busy", "true");
  try {
    const opened = isOpen ? { dir: state.dir, writes: state.writes } : await carrier.open();
    isOpen = true;
    state.writes = opened.writes;
    state.dir = opened.dir;
    showPlace();
    addPage(opened.page ?? (await call("list_backups", listArguments(null))));
    if (state.backups.length) select(state.backups[0]);
    if (document.activeElement === document.body) $("list").focus();
  } catch (error) {
    state.failure = error;
  }
  showEnd();
}

let isOpen = false;

function showPlace() {
  $("place").replaceChildren(state.dir ? visible(state.dir) : "of all directories");
  document.title = state.dir ? `${plain(state.dir)} · Sandpoint` : "Sandpoint";
  $("create").hidden = !(state.writes && state.dir);
}

function toggleFiles() {
  const files = [...document.querySelectorAll("details.file")];
  const opens = files.some((file) => !file.open);
  for (const file of files) file.open = opens;
}

function isIn(id) {
  return $(id).contains(document.activeElement);
}

function moveBy(by) {
  if (isIn("detail")) moveInFiles(by);
  else move(by);
}

const ACTIONS = {
  j: () => moveBy(1),
  ArrowDown: () => moveBy(1),
  k: () => moveBy(-1),
  ArrowUp: () => moveBy(-1),
  Home: () => moveBy(-Infinity),
  End: () => moveBy(Infinity),
  PageDown: () => moveBy(10),
  PageUp: () => moveBy(-10),
  d: () => compareWith(against === "before" ? "now" : "before"),
  e: toggleFiles,
  r: () => $("restore")?.click(),
  u: openUndo,
  b: () => !$("create").hidden && openCreate(),
  "/": () => {
    document.body.dataset.view = "list";
    $("filter").focus();
    $("filter").select();
  },
  "?": openHelp,
};

function openSelected() {
  if (!state.selected) return;
  document.body.dataset.view = "detail";
  ($("changes")?.querySelector("summary") ?? $("detail")).focus();
}

function onEscape() {
  if ($("filter").value && isIn("filter")) setFilter("");
  else goBack();
}

document.addEventListener("keydown", (event) => {
  if (dialog.open || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const isTyping = event.target.matches("input");
  if (event.key === "Escape") onEscape();
  else if (event.key === "Enter" && event.target.matches("#list, #filter")) openSelected();
  else if (isTyping && (event.key === "ArrowDown" || event.key === "ArrowUp")) move(event.key === "ArrowDown" ? 1 : -1);
  else if (!isTyping && Object.hasOwn(ACTIONS, event.key)) ACTIONS[event.key]();
  else return;
  event.preventDefault();
});

function setFilter(text) {
  $("filter").value = text;
  state.filter = text.trim();
  $("scroll").scrollTop = 0;
  showList();
}

let typed;
$("filter").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => setFilter($("filter").value), 60);
});
$("create").addEventListener("click", openCreate);
$("help").addEventListener("click", openHelp);
$("fullscreen").addEventListener("click", () => carrier.fill());
document.addEventListener("host-context", () => {
  $("fullscreen").hidden = !carrier.canFill;
});
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && readMore(), {
  root: $("scroll"),
  rootMargin: "400px",
}).observe($("end"));
setInterval(renewTimes, 20_000);

if (carrier.mode === "window") {
  const look = () => !document.hidden && isOpen && !dialog.open && !state.reading && refresh().catch((error) => say(plain(error.message)));
  document.addEventListener("visibilitychange", look);
  setInterval(look, 10_000);
}

start();
