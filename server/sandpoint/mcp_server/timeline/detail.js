"use strict";
// One backup: what it is, and how it differs from the one before or from what is there now, file by file.

const OPEN_AT_FIRST = 8;

const REASONS = {
  binary: "binary: no text to compare",
  large: "a file above 1 MiB: not compared line by line",
  unreadable: "it could not be read",
};

let against = "before";
/** What is shown now; what comes later for something else is dropped. */
let comparing = new AbortController();

function showDetail(backup) {
  comparing.abort();
  const facts = [
    ["Taken", [absolute(backup.created_at), " · ", timeElement(backup.created_at)]],
    [isOver(backup) ? "Expired" : "Expires", [timeElement(backup.expires_at)]],
    ["Directory", [visible(backup.dir)]],
    ["Size", [`${bytes(backup.size_bytes)} in the store · ${count(backup.file_count, "file", "files")}, ${bytes(backup.total_bytes)}`]],
    backup.description && ["About", [visible(backup.description, { keep: "\n" })]],
    ...Object.entries(backup.metadata ?? {})
      .filter(([key]) => key !== "undo_of")
      .map(([key, value]) => [plain(key), [visible(value, { keep: "\n" })]]),
    backup.metadata?.undo_of && ["Undoes", ["the restore of ", make("code", {}, visible(backup.metadata.undo_of))]],
    backup.unstable_paths && ["Unstable", [`written to meanwhile, may be a mix of old and new: ${plain(backup.unstable_paths.join(", "))}`]],
    backup.skipped_mounts && ["Left out", [`other filesystems inside: ${plain(backup.skipped_mounts.join(", "))}`]],
    ["Id", [make("code", {}, backup.id)]],
  ];
  $("detail").replaceChildren(
    make("div", { class: "head" },
      make("button", { type: "button", id: "back", on: { click: goBack } }, "‹ Backups"),
      make("h2", {}, make("span", { class: backup.name ? "" : "unnamed" }, visible(nameOf(backup))), " ", make("span", { class: `badge ${kindOf(backup)}` }, kindOf(backup))),
      state.writes && !isOver(backup) && make("button", { type: "button", class: "main", id: "restore", on: { click: () => openRestore(backup) } }, "Restore…"),
    ),
    make("dl", { class: "facts" }, facts.filter(Boolean).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("div", { class: "tabs", role: "tablist", "aria-label": "Compare" }, tab("before", "Since the one before"), tab("now", "Until now")),
    make("div", { id: "changes", role: "tabpanel", "aria-labelledby": `tab-${against}` }),
  );
  $("detail").scrollTop = 0;
  showChanges(backup);
}

function tab(which, label) {
  const isChosen = against === which;
  return make("button", {
    type: "button", role: "tab", id: `tab-${which}`, "aria-selected": isChosen, "aria-controls": "changes",
    tabindex: isChosen ? 0 : -1,
    on: {
      click: () => compareWith(which),
      keydown: (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.preventDefault();
        event.stopPropagation();
        compareWith(which === "before" ? "now" : "before");
        $(`tab-${against}`).focus();
      },
    },
  }, label);
}

function compareWith(which) {
  against = which;
  for (const each of ["before", "now"]) {
    $(`tab-${each}`)?.setAttribute("aria-selected", each === which);
    $(`tab-${each}`)?.setAttribute("tabindex", each === which ? 0 : -1);
  }
  $("changes")?.setAttribute("aria-labelledby", `tab-${which}`);
  if (state.selected) showChanges(state.selected);
}

/** The arguments that compare what is chosen, or why there is nothing to compare. */
async function comparison(backup) {
  if (against === "now") return { backup_id: backup.id };
  let before = predecessor(backup);
  while (before === undefined && !state.failure) {
    await readMore();
    before = predecessor(backup);
  }
  return before ? { backup_id: before.id, other_id: backup.id } : null;
}

async function showChanges(backup) {
  comparing.abort();
  const mine = (comparing = new AbortController());
  const place = $("changes");
  const known = against === "before" ? steps.get(backup.id) : null;
  place.setAttribute("aria-busy", "true");
  place.replaceChildren(make("p", { class: "summary quiet" }, known && !known.first && !known.error ? summary(known) : "Comparing…"));
  try {
    // While one holds an arrow key down, nothing is compared.
    await new Promise((resolve) => setTimeout(resolve, 120));
    if (mine.signal.aborted) return;
    const asked = await comparison(backup);
    if (mine.signal.aborted) return;
    if (!asked) {
      place.replaceChildren(make("p", { class: "summary quiet" }, "The first backup of this directory: there is none before it to compare with."));
      return;
    }
    const changes = await call("diff_backup", { ...asked, content: true }, { signal: mine.signal });
    if (mine.signal.aborted) return;
    if (asked.other_id) noteStep(backup.id, changes);
    showFiles(place, backup, asked, changes);
  } catch (error) {
    if (mine.signal.aborted) return;
    place.replaceChildren(failureBox(error, () => showChanges(backup)));
  } finally {
    if (!mine.signal.aborted) place.setAttribute("aria-busy", "false");
  }
}

function summary(changes) {
  const total = totalOf(changes);
  if (!total) return against === "now" ? "Nothing has changed since this backup." : "Nothing changed since the one before.";
  return [make("span", { class: "counts" }, countParts(changes)), ` ${count(total, "path differs", "paths differ")}`];
}

function showFiles(place, backup, asked, changes) {
  const list = make("div", { class: "files" });
  const look = against === "now" && make("button", { type: "button", class: "link", on: { click: () => showChanges(backup) } }, "Look again");
  place.replaceChildren(make("p", { class: "summary" }, summary(changes), " ", look), list);
  addFiles(list, backup, asked, changes);
}

function addFiles(list, backup, asked, changes) {
  const patches = splitPatch(changes.patch ?? "");
  const reasons = new Map(Object.entries(changes.not_in_patch ?? {}).flatMap(([reason, paths]) => paths.map((path) => [path, reason])));
  const files = KINDS.flatMap(([kind, sign]) => (changes[kind] ?? []).map((path) => ({ kind, sign, path, patch: patches.get(path), reason: reasons.get(path) })));
  files.sort((a, b) => (a.path < b.path ? -1 : 1));
  const opens = totalOf(changes) <= OPEN_AT_FIRST;
  list.append(...files.map((file) => fileRow(backup, asked, file, opens && Boolean(file.patch))));
  const left = totalOf(changes) - list.querySelectorAll(".file").length;
  if (left > 0) list.append(restOfFiles(list, backup, asked, changes.next_cursor, left));
}

/** What the list leaves out: the next of them where the server goes on, else how many they are. */
function restOfFiles(list, backup, asked, cursor, left) {
  const text = `${count(left, "more path is", "more paths are")} not listed`;
  if (!cursor) return make("p", { class: "quiet rest" }, `${text}: diff_backup or “sandpoint diff” with paths narrows it down.`);
  const rest = make("p", { class: "rest" });
  rest.append(make("button", { type: "button", on: { click: async () => {
    try {
      const changes = await call("diff_backup", { ...asked, content: true, cursor });
      rest.remove();
      addFiles(list, backup, asked, changes);
    } catch (error) {
      rest.replaceChildren(failureBox(error));
    }
  } } }, `Show more (${number(left)} left)`));
  return rest;
}

function fileRow(backup, asked, file, isOpen) {
  const note = make("span", { class: "note" });
  const body = make("div", { class: "body" });
  const row = make("details", { class: `file ${file.kind}` },
    make("summary", {},
      make("span", { class: "sign", "aria-hidden": "true" }, file.sign),
      make("span", { class: "path" }, visible(file.path)),
      note,
      make("span", { class: "change" }, WORDS[file.kind]),
    ),
    body,
  );
  noteFile(note, file);
  let isFilled = false;
  row.addEventListener("toggle", () => {
    if (!row.open || isFilled) return;
    isFilled = true;
    fillFile(body, note, backup, asked, file);
  });
  row.open = isOpen;
  return row;
}

function noteFile(note, file) {
  if (file.patch) {
    const [added, removed] = countLines(file.patch);
    note.replaceChildren(
      make("span", { class: "added" }, added ? `+${number(added)}` : ""), " ",
      make("span", { class: "removed" }, removed ? `−${number(removed)}` : ""),
    );
  } else if (file.reason && file.reason !== "limit" && file.reason !== "cut") {
    note.textContent = plain(file.reason);
  }
}

async function fillFile(body, note, backup, asked, file) {
  const restore = state.writes && !isOver(backup) && make("button", { type: "button", class: "link", on: { click: () => openRestore(backup, [file.path]) } },
    "Restore this path as it was in the backup…");
  const show = (...content) => body.replaceChildren(...content, ...(restore ? [make("p", { class: "act" }, restore)] : []));
  if (file.patch && file.reason !== "cut") {
    show(showPatch(file.patch));
    return;
  }
  if (file.reason && file.reason !== "limit" && file.reason !== "cut") {
    show(make("p", { class: "quiet" }, REASONS[file.reason] ?? `only this differs: ${plain(file.reason)}`));
    return;
  }
  show(make("p", { class: "quiet" }, "Comparing…"));
  try {
    const changes = await call("diff_backup", { ...asked, paths: [file.path], content: true });
    const reason = Object.keys(changes.not_in_patch ?? {})[0];
    if (changes.patch) {
      show(showPatch(changes.patch), ...(reason === "cut" ? [make("p", { class: "quiet" }, "The rest is too long to be shown here.")] : []));
      noteFile(note, { patch: changes.patch });
    } else {
      show(make("p", { class: "quiet" }, reason ? REASONS[reason] ?? `only this differs: ${plain(reason)}` : "A folder, or a file without contents: there is nothing to compare."));
    }
  } catch (error) {
    show(failureBox(error, () => fillFile(body, note, backup, asked, file)));
  }
}

function goBack() {
  document.body.dataset.view = "list";
  $("list").focus();
}

function moveInFiles(by) {
  const files = [...document.querySelectorAll("#changes summary")];
  if (!files.length) return;
  const at = files.indexOf(document.activeElement.closest("summary"));
  files[at < 0 ? (by > 0 ? 0 : files.length - 1) : Math.max(0, Math.min(files.length - 1, at + by))].focus();
}
