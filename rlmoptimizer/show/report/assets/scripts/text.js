/* Text that was written by models, programs and data: isolated, its control characters visible, long ones in parts. */

// What could hide text, reorder it or drive a terminal. Tabs and line ends stay, and the joiners that scripts and emoji
// need. The last range is written as pairs of surrogates: letters that cannot be seen at all.
const CONTROLS =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const NAMES = { 0: "NUL", 7: "BEL", 8: "BS", 12: "FF", 13: "CR", 27: "ESC", 127: "DEL", 0x200b: "ZWSP", 0xfeff: "BOM" };
const FIRST_CHARS = 4000; // of a long text at first
const MORE_CHARS = 40000; // with each press of the button
const LINE_CHARS = 400;

function controlName(found) {
  const code = found.codePointAt(0);
  return NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Text as nodes. `mark` gives the node for what cannot be seen. */
function visible(text) {
  const nodes = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(CONTROLS)) {
    // The CR of a CRLF is an end of line as any other.
    if (match[0] === "\r" && text[match.index + 1] === "\n") continue;
    nodes.append(text.slice(end, match.index), el("span", { class: "control" }, controlName(match[0])));
    end = match.index + match[0].length;
  }
  nodes.append(text.slice(end));
  return nodes;
}

/** The same in one line of plain text, for labels, titles and options. */
function shownLine(value, limit = LINE_CHARS) {
  const text = String(value).slice(0, limit + 1);
  const cut = text.length > limit ? `${text.slice(0, limit)}…` : text;
  return cut.replace(/\s+/g, " ").replace(CONTROLS, (found) => `[${controlName(found)}]`);
}

/** A short text within a line of ours: its direction does not leak out of it. */
function inline(value, tag = "bdi", attributes = {}) {
  return el(tag, { dir: "auto", class: "datum", ...attributes }, shownLine(value));
}

/** Where a text may be cut at or before a place: not within a pair of surrogates. */
function cutAt(text, place) {
  if (place >= text.length) return text.length;
  const code = text.charCodeAt(place - 1);
  return code >= 0xd800 && code <= 0xdbff ? place - 1 : place;
}

/** A text of any length. Megabytes are shown in parts, each when it is asked for. `draw` makes nodes of a part. */
function longText(text, { className = "text", label = "text", draw = visible } = {}) {
  const block = el("pre", { class: className, dir: "auto", tabindex: "0", role: "group", "aria-label": label });
  let shown = cutAt(text, FIRST_CHARS);
  block.append(draw(text.slice(0, shown)));
  if (shown === text.length) {
    if (text.length < 400) for (const name of ["tabindex", "role", "aria-label"]) block.removeAttribute(name);
    return block;
  }
  const note = el("span", { class: "quiet" });
  const more = el("button", { type: "button", class: "small" });
  const rest = el("p", { class: "parts" }, more, note);
  const tell = () => {
    const left = text.length - shown;
    more.textContent = `Show ${number(Math.min(left, MORE_CHARS))} more`;
    note.textContent = ` ${number(shown)} of ${number(text.length)} characters`;
    more.hidden = left === 0;
  };
  more.addEventListener("click", () => {
    const next = cutAt(text, shown + MORE_CHARS);
    block.append(draw(text.slice(shown, next)));
    shown = next;
    tell();
    if (more.hidden) block.focus({ preventScroll: true });
    announce(note.textContent);
  });
  tell();
  return el("div", { class: "long" }, block, rest);
}

/** A value as JSON holds it: texts as they are, maps as lists of terms, the rest as JSON. */
function valueNode(value, label = "value") {
  if (typeof value === "string") {
    return value === "" ? el("p", { class: "quiet" }, "empty text") : longText(value, { label });
  }
  if (value === null || value === undefined) return el("p", { class: "quiet" }, "none");
  if (typeof value !== "object") return el("p", { class: "plain" }, String(value));
  return longText(JSON.stringify(value, null, 2), { className: "text json", label });
}

/** A map of values, field by field. */
function fieldsNode(fields, label = "fields") {
  if (fields === null || typeof fields !== "object" || Array.isArray(fields)) return valueNode(fields, label);
  const names = Object.keys(fields);
  if (!names.length) return el("p", { class: "quiet" }, "nothing");
  const list = el("dl", { class: "fields" });
  for (const name of names) {
    list.append(el("dt", {}, inline(name)), el("dd", {}, valueNode(fields[name], `${label}, ${shownLine(name, 80)}`)));
  }
  return list;
}
