"use strict";
// What asks first: restore with its preview, back up now; and the table of keys.

const dialog = $("dialog");
let isBusy = false;

function openDialog(title, ...content) {
  dialog.replaceChildren(make("h2", { id: "dialog-title" }, title), ...content);
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".start")?.focus();
}

function closeDialog() {
  if (!isBusy) dialog.close();
}

dialog.addEventListener("cancel", (event) => {
  if (isBusy) event.preventDefault();
});
addEventListener("beforeunload", (event) => {
  if (isBusy) event.preventDefault(); // to leave would cancel what runs
});
dialog.addEventListener("close", () => {
  if (!dialog.open) dialog.replaceChildren(); // the event comes late: it may have been opened again
});

function button(label, click, attributes = {}) {
  return make("button", { type: "button", on: { click }, ...attributes }, label);
}

function actions(...buttons) {
  return make("div", { class: "actions" }, buttons);
}

/** Run something that must not be left half seen: the dialog stays until it is done, and says how long it takes. */
async function busy(title, work) {
  isBusy = true;
  const began = performance.now();
  const what = make("span", {}, "working");
  const clock = make("span", { class: "quiet" });
  openDialog(title, make("p", { class: "busy", role: "status" }, make("span", { class: "spinner", "aria-hidden": "true" }), what), make("p", {}, clock));
  const tick = setInterval(() => (clock.textContent = `${number(Math.floor((performance.now() - began) / 1000))} s`), 1000);
  try {
    return await work((message) => (what.textContent = plain(message)));
  } finally {
    clearInterval(tick);
    isBusy = false;
  }
}

const EFFECTS = [
  ["added", "+", "Come back", "path comes back", "paths come back"],
  ["modified", "~", "Are overwritten", "path is overwritten", "paths are overwritten"],
  ["removed", "−", "Are deleted", "path is deleted", "paths are deleted"],
];

/** Show what a restore would do; only the button that says so does it. */
async function openRestore(backup, paths) {
  const asked = { backup_id: backup.id, ...(paths && { paths }) };
  const title = make("span", {}, paths ? ["Restore ", visible(paths.join(", ")), " from "] : "Restore ", "“", visible(nameOf(backup)), "”");
  openDialog(title, make("p", { class: "quiet", role: "status" }, "Looking at what would change…"), actions(button("Cancel", closeDialog, { class: "start" })));
  const mine = dialog.firstElementChild;
  try {
    const plan = await call("restore_backup", { ...asked, dry_run: true });
    if (dialog.open && dialog.firstElementChild === mine) showPlan(backup, asked, title, plan);
  } catch (error) {
    if (dialog.open && dialog.firstElementChild === mine) {
      openDialog(title, failureBox(error, () => openRestore(backup, paths)), actions(button("Close", closeDialog, { class: "start" })));
    }
  }
}

function showPlan(backup, asked, title, plan) {
  const changes = plan.changes;
  const isNothing = changes && !totalOf(changes) && !plan.unmounted;
  const facts = [
    make("p", {}, visible(plan.dir), " as it was ", timeElement(backup.created_at), ` (${absolute(backup.created_at)})`),
    isNothing && make("p", { class: "strong" }, "Nothing would change: it is as it was."),
    !changes && make("p", { class: "strong" }, "The whole directory is replaced by the backup, as an overlay: gone after a restart."),
    changes && !isNothing && make("div", { class: "plan" }, EFFECTS.map((effect) => planPart(effect, changes))),
    plan.unmounted && make("p", {}, "The overlay that is mounted there is taken down first."),
    ...notes(plan),
    !isNothing && make("p", { class: "quiet" }, "What is there now is backed up first, so that you can undo this."),
  ];
  const confirm = !isNothing && button(confirmLabel(changes), () => restore(backup, asked, title), { class: "main danger", id: "confirm" });
  openDialog(title, ...facts.filter(Boolean), actions(button(isNothing ? "Close" : "Cancel", closeDialog, { class: "start" }), confirm));
}

function notes(plan) {
  return [
    plan.kept_paths && make("p", {}, `Stay, because they hold excluded paths: ${plain(plan.kept_paths.join(", "))}`),
    plan.skipped_mounts && make("p", {}, `Not touched, other filesystems inside: ${plain(plan.skipped_mounts.join(", "))}`),
    plan.taken_in && make("p", {}, `The backup was taken in another sandbox: ${plain(plan.taken_in)}`),
  ];
}

function planPart([kind, sign, heading], changes) {
  const total = changes[`${kind}_count`];
  if (!total) return null;
  const paths = changes[kind] ?? [];
  const left = total - paths.length;
  return make("details", { class: `effect ${kind}`, open: total <= 12 },
    make("summary", {}, make("span", { class: "sign", "aria-hidden": "true" }, sign), `${heading}: `, make("b", {}, number(total))),
    make("ul", {}, paths.map((path) => make("li", {}, visible(path))), left > 0 && make("li", { class: "quiet" }, `and ${number(left)} more`)),
  );
}

function confirmLabel(changes) {
  if (!changes) return "Replace the directory";
  const written = changes.added_count + changes.modified_count;
  const removed = changes.removed_count;
  const parts = [written && `restore ${count(written, "path", "paths")}`, removed && `delete ${count(removed, "path", "paths")}`];
  const label = parts.filter(Boolean).join(", ");
  return label ? label[0].toUpperCase() + label.slice(1) : "Take down the overlay";
}

function effectsOf(changes) {
  if (!changes) return "the directory shows the backup";
  const parts = EFFECTS.filter(([kind]) => changes[`${kind}_count`]).map(([kind, , , one, many]) => count(changes[`${kind}_count`], one, many));
  return parts.join(", ").replaceAll(/ (come|comes) back/g, " came back").replaceAll(/ (is|are) /g, " ") || "nothing had to change";
}

async function restore(backup, asked, title) {
  try {
    const result = await busy(title, (progress) => call("restore_backup", asked, { progress }));
    state.undo = result.undo_id ? { id: result.undo_id, of: backup, at: new Date().toISOString() } : null;
    const done = `Restored “${plain(nameOf(backup))}”: ${effectsOf(result.changes)}.`;
    say(done, { undo: state.undo });
    openDialog("Restored",
      make("p", { role: "status" }, done),
      make("p", { class: "quiet" }, visible(result.dir)),
      ...notes(result).filter(Boolean),
      actions(state.undo && button("Undo…", () => openUndo()), button("Close", closeDialog, { class: "main start" })));
      carrier.tellModel?.(`In the page of backups the user restored backup ${asked.backup_id} to ${result.dir}: ${effectsOf(result.changes)}.` +
      (result.undo_id ? ` To undo it: restore_backup with backup_id ${result.undo_id}.` : ""));
    await afterChange();
  } catch (error) {
    openDialog(title, failureBox(error), actions(button("Close", closeDialog, { class: "main start" })));
  }
}

/** The way back is a restore too: the backup of the state before, with its own preview. */
async function openUndo() {
  if (!state.undo) {
    say("Nothing was restored here that could be undone.");
    return;
  }
  const { id, of } = state.undo;
  await openRestore({ id, name: `undo of ${nameOf(of)}`, created_at: state.undo.at });
}

/** Read the list again, and compare again with what is there now. */
async function afterChange() {
  try {
    await refresh();
    if (state.selected && against === "now") await showChanges(state.selected);
  } catch (error) {
    state.failure = error;
    showEnd();
  }
}

function openCreate() {
  const name = make("input", { type: "text", id: "create-name", maxlength: 256, autocomplete: "off", class: "start", placeholder: "before the migration" });
  const form = make("form", { method: "dialog", on: { submit: (event) => {
    event.preventDefault();
    create(name.value.trim());
  } } },
  make("p", {}, "A backup of ", visible(state.dir), ". The directory is not changed."),
  make("label", { for: "create-name" }, "Name, to find it by (may be empty)"), name,
  actions(button("Cancel", closeDialog), make("button", { type: "submit", class: "main" }, "Back up")));
  openDialog("Back up now", form);
}

async function create(name) {
  try {
    const backup = await busy("Back up now", (progress) => call("create_backup", { dir: state.dir, ...(name && { name }) }, { progress }));
    closeDialog();
    say(`Backed up ${count(backup.file_count, "file", "files")}${backup.name ? ` as “${plain(backup.name)}”` : ""}.`);
    await afterChange();
    const made = state.backups.find((each) => each.id === backup.id);
    if (made) select(made);
  } catch (error) {
    openDialog("Back up now", failureBox(error, openCreate), actions(button("Close", closeDialog, { class: "start" })));
  }
}

const KEYS = [
  ["j k ↓ ↑", "to the next, the one before"],
  ["Home End", "to the newest, the oldest that was read"],
  ["Enter", "open the backup; in its files: show how one differs"],
  ["d", "compare: since the one before, until now"],
  ["e", "open or close all files"],
  ["r", "restore: shows what would change, and asks"],
  ["u", "undo the last restore: shows what would change, and asks"],
  ["b", "back up now"],
  ["/", "filter"],
  ["Esc", "back"],
  ["?", "these keys"],
];

function openHelp() {
  openDialog("Keys",
    make("dl", { class: "help" }, KEYS.map(([keys, what]) => make("div", {}, make("dt", {}, keys.split(" ").map((key) => make("kbd", {}, key))), make("dd", {}, what)))),
    actions(button("Close", closeDialog, { class: "main start" })));
}

/** Tell what happened, where it stays; `undo` offers the way back beside it. */
function say(text, { undo = null } = {}) {
  $("status").replaceChildren(make("span", {}, text), ...(undo ? [" ", button("Undo…", openUndo, { class: "link", id: "undo" })] : []));
}
