"use strict";
// Patches in git's format, as diff_backup returns them: taken apart by file, and shown with line numbers.

const C_ESCAPES = { a: 7, b: 8, t: 9, n: 10, v: 11, f: 12, r: 13, '"': 34, "\\": 92 };

/** Return the path that git wrote, with the escapes that diff_backup uses where it is not plain text. */
function unquote(written) {
  if (!written.startsWith('"')) return written.slice(2);
  const found = [];
  for (const [, octal, letter, other] of written.slice(1, -1).matchAll(/\\([0-7]{3})|\\(.)|([^\\])/gs)) {
    found.push(octal ? parseInt(octal, 8) : letter ? C_ESCAPES[letter] : other.charCodeAt(0));
  }
  return displayed(Uint8Array.from(found.slice(2)));
}

const NAMED = { 9: "\\t", 10: "\\n", 13: "\\r" };

/** What the lists call a path of such bytes: what is no UTF-8 and what no eye can see is escaped. */
function displayed(raw) {
  let shown = "";
  for (let at = 0; at < raw.length; ) {
    const length = raw[at] < 0x80 ? 1 : raw[at] < 0xe0 ? 2 : raw[at] < 0xf0 ? 3 : 4;
    try {
      const character = UTF8.decode(raw.subarray(at, at + length));
      shown += character.replace(/(?! )[\p{C}\p{Z}]/gu, hex);
      at += length;
    } catch {
      shown += hex(String.fromCharCode(raw[at]));
      at += 1;
    }
  }
  return shown;
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function hex(character) {
  const code = character.codePointAt(0);
  const digits = code.toString(16);
  if (NAMED[code]) return NAMED[code];
  if (code < 0x100) return `\\x${digits.padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
}

/** Return the parts of a patch by path. A path that becomes another kind of file has two. */
function splitPatch(patch) {
  const parts = new Map();
  for (const part of patch.split(/^(?=diff --git )/m)) {
    if (!part) continue;
    const names = part.slice("diff --git ".length, part.indexOf("\n"));
    const path = unquote(names.slice(0, (names.length - 1) / 2));
    parts.set(path, (parts.get(path) ?? "") + part);
  }
  return parts;
}

/** Return the lines of one file's patch: what they do, their numbers before and after, their text. */
function readPatch(patch) {
  const lines = [];
  let before = 0;
  let after = 0;
  let left = [0, 0];
  for (const line of patch.split("\n")) {
    const hunk = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@/.exec(line);
    const modes = /^(new file mode|deleted file mode|old mode|new mode) 10?(\d+)$/.exec(line);
    if (left[0] > 0 || left[1] > 0) {
      const sign = line[0];
      if (sign === "\\") {
        lines.push({ kind: "note", text: "no newline at the end" });
        continue;
      }
      const kind = { "+": "added", "-": "removed" }[sign] ?? "same";
      lines.push({
        kind,
        before: kind === "added" ? null : before++,
        after: kind === "removed" ? null : after++,
        text: line.slice(1),
      });
      if (kind !== "added") left[0] -= 1;
      if (kind !== "removed") left[1] -= 1;
    } else if (hunk) {
      [before, after] = [Number(hunk[1]), Number(hunk[3])];
      left = [Number(hunk[2] ?? 1), Number(hunk[4] ?? 1)];
      if (before && after) lines.push({ kind: "hunk", text: `line ${number(after)}` });
    } else if (line.startsWith("\\ ")) {
      lines.push({ kind: "note", text: "no newline at the end" });
    } else if (modes) {
      lines.push({ kind: "note", text: `${MODES[modes[1]]} ${modes[2]}` });
    }
  }
  return lines;
}

const MODES = { "new file mode": "new, mode", "deleted file mode": "deleted, mode", "old mode": "mode was", "new mode": "mode is" };
const SIGN = { added: "+", removed: "−", same: "" };

function showPatch(patch) {
  const rows = readPatch(patch).map(({ kind, before, after, text }) => {
    if (kind === "hunk" || kind === "note") {
      return make("tr", { class: kind }, make("td", { colspan: 3 }), make("td", { class: "code" }, text));
    }
    return make(
      "tr",
      { class: kind },
      make("td", { class: "line", "data-line": before ?? "" }),
      make("td", { class: "line", "data-line": after ?? "" }),
      make("td", { class: "sign" }, SIGN[kind]),
      make("td", { class: "code" }, visible(text, { keep: "\t" })),
    );
  });
  return make(
    "table",
    { class: "patch", "aria-label": "How the text differs" },
    make("colgroup", {}, ["line", "line", "sign", "code"].map((name) => make("col", { class: name }))),
    make("tbody", {}, rows),
  );
}

function countLines(patch) {
  const lines = readPatch(patch);
  return ["added", "removed"].map((kind) => lines.filter((line) => line.kind === kind).length);
}
