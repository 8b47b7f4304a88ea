"use strict";
// The time line: backups newest first, read page by page as one scrolls.

const PAGE = 100;

const state = {
  dir: null,
  writes: false,
  backups: [],
  cursor: null,
  reading: null,
  failure: null,
  selected: null,
  filter: "",
  undo: null,
};

/** What changed from one backup to the next, by id; asked for once, for rows that are looked at. */
const steps = new Map();
const rows = new Map();

const $ = (id) => document.getElementById(id);

function isUndo(backup) {
  return Boolean(backup.metadata?.undo_of);
}

function nameOf(backup) {
  return backup.name ?? (isUndo(backup) ? "undo" : "no name");
}

function kindOf(backup) {
  return isUndo(backup) ? "undo" : backup.kind;
}

function isOver(backup) {
  return new Date(backup.expires_at) <= new Date();
}

/** The backup of the same directory and sandbox before one; null for the first, undefined while nobody knows. */
function predecessor(backup) {
  const at = state.backups.indexOf(backup);
  const found = state.backups
    .slice(at + 1)
    .find((other) => other.dir === backup.dir && isOfOneSandbox(other, backup));
  return found ?? (state.cursor ? undefined : null);
}

/** A list names the sandboxes only where it has backups of several. */
function isOfOneSandbox(one, other) {
  return !one.sandbox_id || !other.sandbox_id || one.sandbox_id === other.sandbox_id;
}

/** What the filter looks in. */
const said = new WeakMap();

function fits(backup) {
  if (!state.filter) return true;
  if (!said.has(backup)) {
    const { id, dir, description, created_at: made } = backup;
    said.set(backup, [nameOf(backup), kindOf(backup), id, dir, description ?? "", day(made), made].join(" ").toLowerCase());
  }
  return state.filter.toLowerCase().split(/\s+/).every((word) => said.get(backup).includes(word));
}

function listArguments(cursor) {
  return { ...(state.dir && { dir: state.dir }), ...(cursor && { cursor }), limit: PAGE };
}

/** Read the next page, unless one is being read. */
function readMore() {
  if (state.reading || state.failure || !state.cursor) return state.reading;
  state.reading = call("list_backups", listArguments(state.cursor))
    .then((page) => addPage(page))
    .catch((error) => (state.failure = error))
    .finally(() => {
      state.reading = null;
      showEnd();
    });
  showEnd();
  return state.reading;
}

function addPage(page) {
  const known = new Set(state.backups.map((backup) => backup.id));
  const added = page.backups.filter((backup) => !known.has(backup.id));
  state.backups.push(...added);
  state.cursor = page.next_cursor ?? null;
  added.forEach((backup) => showRow(backup));
  watchRows(added);
}

/** Begin anew, or with what is newest put in front of what is there: nothing moves that stays. */
async function refresh() {
  const page = await call("list_backups", listArguments(null));
  const last = page.backups.at(-1)?.created_at ?? "";
  const ids = new Set(page.backups.map((backup) => backup.id));
  const older = page.next_cursor ? state.backups.filter((backup) => backup.created_at <= last && !ids.has(backup.id)) : [];
  const wanted = [...page.backups, ...older];
  state.failure = null;
  if (wanted.length === state.backups.length && wanted.every((backup, at) => backup.id === state.backups[at].id)) {
    showEnd();
    return;
  }
  if (!older.length) state.cursor = page.next_cursor ?? null;
  const old = new Map(state.backups.map((backup) => [backup.id, backup]));
  state.backups = wanted.map((backup) => old.get(backup.id) ?? backup);
  if (state.selected && !state.backups.includes(state.selected)) state.selected = null;
  showList();
}

function showList() {
  const top = $("scroll").scrollTop;
  rows.clear();
  $("list").replaceChildren();
  state.backups.forEach((backup) => showRow(backup));
  $("scroll").scrollTop = top;
  markSelected();
  seen.disconnect();
  wanted.clear();
  watchRows(state.backups);
  showEnd();
}

function showRow(backup) {
  if (!fits(backup)) return;
  const list = $("list");
  const when = day(backup.created_at);
  if (list.lastElementChild?.dataset.day !== when) {
    const heading = make("div", { class: "day", "aria-hidden": "true" }, when);
    list.append(make("div", { role: "group", "aria-label": when, "data-day": when }, heading));
  }
  const row = make(
    "div",
    {
      role: "option",
      id: `row-${backup.id}`,
      class: `row ${kindOf(backup)}${isOver(backup) ? " over" : ""}`,
      "aria-selected": "false",
      on: { click: () => select(backup, { open: true }) },
    },
    make("span", { class: "first" },
      make("span", { class: `name${backup.name ? "" : " unnamed"}` }, visible(nameOf(backup))),
      make("span", { class: "when", title: absolute(backup.created_at) }, clockTime(backup.created_at)),
    ),
    make("span", { class: "second" },
      make("span", { class: "kind" }, kindOf(backup)),
      make("span", { class: "size", title: "in the store" }, bytes(backup.size_bytes)),
      make("span", { class: "step", "data-step": backup.id }),
      make("span", { class: "ago" }, timeElement(backup.created_at, { style: "narrow" })),
    ),
    !state.dir && make("span", { class: "dir" }, visible(backup.dir)),
  );
  list.lastElementChild.append(row);
  rows.set(backup.id, row);
  if (steps.has(backup.id)) showStep(backup.id);
}

/** The end of the list says what comes: more, nothing, or what went wrong. */
function showEnd() {
  const end = $("end");
  end.removeAttribute("role");
  if (state.failure) {
    end.replaceChildren(failureBox(state.failure, () => {
      state.failure = null;
      return state.backups.length ? readMore() : start();
    }));
  } else if (state.reading || state.cursor) {
    const text = state.filter && !rows.size ? `Looking in older backups; ${number(state.backups.length)} read…` : "Reading more…";
    end.replaceChildren(make("p", { class: "quiet" }, text));
  } else if (!state.backups.length) {
    end.replaceChildren(emptyBox());
  } else if (!rows.size) {
    const text = `No backup fits “${plain(state.filter)}”; ${number(state.backups.length)} were looked at.`;
    end.replaceChildren(make("p", { class: "quiet" }, text));
  } else {
    const text = state.filter ? `${number(rows.size)} of ${count(state.backups.length, "backup", "backups")}` : count(state.backups.length, "backup", "backups");
    end.replaceChildren(make("p", { class: "quiet" }, text));
  }
  $("list").setAttribute("aria-busy", state.reading ? "true" : "false");
  if (!state.reading && state.cursor && isNear(end)) readMore();
}

function isNear(end) {
  return end.getBoundingClientRect().top < $("scroll").getBoundingClientRect().bottom + 400;
}

function emptyBox() {
  const where = state.dir ? ["No backups of ", make("b", {}, visible(state.dir)), " yet."] : ["No backups yet."];
  return make(
    "div",
    { class: "empty" },
    make("p", {}, where),
    state.writes && state.dir && make("p", {}, make("button", { type: "button", class: "main", on: { click: openCreate } }, "Back up now…")),
    state.dir && make("p", {}, make("button", { type: "button", class: "link", on: { click: () => showAll() } }, "Show those of all directories")),
  );
}

function showAll() {
  state.dir = null;
  carrier.show?.(null);
  return start();
}

/** An error as the server told it, with what to do about it. */
function failureBox(error, again) {
  return make(
    "div",
    { class: "failure", role: "alert" },
    make("p", {}, make("code", {}, error.code ?? "ERROR"), " ", visible(error.message, { keep: "\n" })),
    again && make("p", {}, make("button", { type: "button", on: { click: again } }, "Try again")),
  );
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const backup = entry.target.backup;
      if (entry.isIntersecting) wanted.add(backup);
      else wanted.delete(backup);
    }
    askSteps();
  },
  { root: null, rootMargin: "50px" },
);

const wanted = new Set();
let asking = 0;

function watchRows(backups) {
  for (const backup of backups) {
    const row = rows.get(backup.id);
    if (row && !steps.has(backup.id)) {
      row.backup = backup;
      seen.observe(row);
    }
  }
}

/** Ask what changed in the steps that are in sight, two at a time. */
function askSteps() {
  if (asking >= 2 || !wanted.size) return;
  for (const backup of state.backups.filter((each) => wanted.has(each))) {
    if (asking >= 2) return;
    wanted.delete(backup);
    const before = predecessor(backup);
    if (steps.has(backup.id) || before === undefined) continue;
    asking += 1;
    findStep(backup, before).finally(() => {
      asking -= 1;
      askSteps();
    });
  }
}

async function findStep(backup, before) {
  if (before === null) {
    noteStep(backup.id, { first: true });
    return;
  }
  try {
    noteStep(backup.id, await call("diff_backup", { backup_id: before.id, other_id: backup.id }));
  } catch (error) {
    noteStep(backup.id, { error });
  }
}

function noteStep(id, step) {
  steps.set(id, step);
  showStep(id);
}

function showStep(id) {
  const row = rows.get(id);
  if (!row) return;
  seen.unobserve(row);
  row.querySelector(".step").replaceChildren(...stepParts(steps.get(id)));
}

function stepParts(step) {
  if (step.first) return [make("span", { class: "quiet" }, "the first")];
  if (step.error) return [make("span", { class: "quiet", title: plain(step.error.message) }, "not compared")];
  return countParts(step);
}

const KINDS = [
  ["added", "+"],
  ["modified", "~"],
  ["removed", "−"],
];
const WORDS = { added: "added", modified: "changed", removed: "removed" };

function totalOf(changes) {
  return changes.added_count + changes.modified_count + changes.removed_count;
}

function countParts(changes) {
  if (!totalOf(changes)) return [make("span", { class: "quiet" }, "no change")];
  return KINDS.filter(([kind]) => changes[`${kind}_count`]).map(([kind, sign]) =>
    make("span", { class: kind, title: WORDS[kind] }, `${sign}${number(changes[`${kind}_count`])}`, make("span", { class: "unseen-label" }, ` ${WORDS[kind]} `)),
  );
}

function markSelected() {
  const list = $("list");
  for (const row of list.querySelectorAll('[aria-selected="true"]')) row.setAttribute("aria-selected", "false");
  const row = state.selected && rows.get(state.selected.id);
  if (row) {
    row.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", row.id);
  } else {
    list.removeAttribute("aria-activedescendant");
  }
}

/** Choose a backup; `open` also goes to it where there is room for one of both only. */
function select(backup, { open = false } = {}) {
  const isNew = state.selected !== backup;
  state.selected = backup;
  markSelected();
  rows.get(backup.id)?.scrollIntoView({ block: "nearest" });
  if (isNew) showDetail(backup);
  if (open) document.body.dataset.view = "detail";
}

function move(by) {
  const shown = state.backups.filter((backup) => rows.has(backup.id));
  if (!shown.length) return;
  const at = shown.indexOf(state.selected);
  const to = at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by));
  select(shown[to]);
  if (to > shown.length - 10) readMore();
}
