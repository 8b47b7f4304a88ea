"use strict";
// Names, paths and contents are hostile: all of them become text nodes, and what the eye cannot see is written out.

const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|(?<=[\u0000-\u007f])[\u200c\u200d]|[\u{e0000}-\u{e007f}]/gu;
const ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Make an element; `on` maps events to handlers, strings become text, null and false leave an attribute or child out. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    } else if (name.startsWith("aria-") || ![null, undefined, false].includes(value)) {
      node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function escaped(character) {
  return ESCAPES[character] ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Return hostile text as nodes: what is invisible or turns the text around is shown by its code point. */
function visible(text, { keep = "" } = {}) {
  const nodes = [];
  let last = 0;
  for (const found of String(text).matchAll(UNSEEN)) {
    if (keep.includes(found[0])) continue;
    nodes.push(text.slice(last, found.index), make("span", { class: "unseen" }, escaped(found[0])));
    last = found.index + found[0].length;
  }
  nodes.push(text.slice(last));
  return make("bdi", {}, nodes.filter((node) => node !== ""));
}

/** The same for an attribute or a sentence, which have no elements. */
function plain(text) {
  return String(text).replace(UNSEEN, escaped);
}

let locale;
const formats = new Map();

function setLocale(name) {
  try {
    locale = Intl.getCanonicalLocales(name)[0];
  } catch {
    locale = undefined;
  }
  formats.clear();
}

/** A format of Intl, made once: to make one takes longer than to use it. */
function format(Kind, options = {}) {
  const key = Kind.name + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Kind(locale, options));
  return formats.get(key);
}

function number(value) {
  return format(Intl.NumberFormat).format(value);
}

function count(value, one, many) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let scaled = value;
  while (scaled >= 999.5 && unit < units.length - 1) {
    scaled /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || scaled >= 100 ? 0 : 1;
  return `${format(Intl.NumberFormat, { maximumFractionDigits: digits }).format(scaled)} ${units[unit]}`;
}

const STEPS = [
  ["second", 60],
  ["minute", 60],
  ["hour", 24],
  ["day", 30],
  ["month", 12],
  ["year", Infinity],
];

/** "5 minutes ago", "in 3 days". */
function relative(time, { style = "long" } = {}) {
  let value = (new Date(time) - Date.now()) / 1000;
  if (Math.abs(value) < 10) return "just now";
  const words = format(Intl.RelativeTimeFormat, { numeric: "always", style });
  for (const [unit, size] of STEPS) {
    if (Math.abs(value) < size) return words.format(Math.trunc(value), unit);
    value /= size;
  }
  return "";
}

function absolute(time) {
  return format(Intl.DateTimeFormat, { dateStyle: "medium", timeStyle: "medium" }).format(new Date(time));
}

function clockTime(time) {
  return format(Intl.DateTimeFormat, { hour: "2-digit", minute: "2-digit" }).format(new Date(time));
}

function day(time) {
  const date = new Date(time);
  const today = new Date();
  const days = Math.round((new Date(today).setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  const year = date.getFullYear() === today.getFullYear() ? undefined : "numeric";
  return format(Intl.DateTimeFormat, { weekday: "short", day: "numeric", month: "long", year }).format(date);
}

/** A time as a person says it, that is kept right while the page is open. */
function timeElement(time, { style = "long" } = {}) {
  return make("time", { datetime: time, title: absolute(time), "data-style": style }, relative(time, { style }));
}

function renewTimes() {
  for (const node of document.querySelectorAll("time[data-style]")) {
    node.textContent = relative(node.dateTime, { style: node.dataset.style });
  }
}
