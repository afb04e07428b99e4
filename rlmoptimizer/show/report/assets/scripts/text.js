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

// The content of a picture or another medium in a data URL; and that of one that is nothing but a picture of points.
const MEDIUM = /^data:([\w.+-]{1,40}\/[\w.+-]{1,80});base64,[A-Za-z0-9+/=]{64,}$/;
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const MOST_PICTURES = 20; // of one value

function mediumName(url) {
  return `${MEDIUM.exec(url)[1]}, ${number(Math.ceil((url.length * 3) / 4 / 1024))} KB`;
}

/** A picture of the data. It is drawn when it is asked for: a hostile one is then the choice of who looks. */
function pictureNode(url, label) {
  const name = mediumName(url);
  const button = el("button", { type: "button", class: "small" }, `Show the picture (${name})`);
  const figure = el("p", { class: "picture" }, button);
  button.addEventListener("click", () => {
    const image = el("img", { src: url, alt: `${label} (${name})`, tabindex: "-1" });
    image.addEventListener("error", () => image.replaceWith(el("span", { class: "quiet" }, `no picture that can be shown (${name})`)));
    button.replaceWith(image);
    image.focus({ preventScroll: true });
  });
  return figure;
}

/** A value as JSON holds it: texts as they are, media by their names, maps as lists of terms, the rest as JSON. */
function valueNode(value, label = "value") {
  if (typeof value === "string") {
    if (value === "") return el("p", { class: "quiet" }, "empty text");
    return MEDIUM.test(value) ? mediaNode([value], label) : longText(value, { label });
  }
  if (value === null || value === undefined) return el("p", { class: "quiet" }, "none");
  if (typeof value !== "object") return el("p", { class: "plain" }, String(value));
  const media = [];
  const named = (_, one) => {
    if (typeof one !== "string" || !MEDIUM.test(one)) return one;
    media.push(one);
    return `<${mediumName(one)}>`;
  };
  const text = longText(JSON.stringify(value, named, 2), { className: "text json", label });
  return media.length ? el("div", {}, text, mediaNode(media, label)) : text;
}

function mediaNode(media, label) {
  const shown = media.slice(0, MOST_PICTURES).map((url) =>
    PICTURES.includes(MEDIUM.exec(url)[1]) ? pictureNode(url, label) : el("p", { class: "quiet" }, mediumName(url)),
  );
  const rest = media.length - shown.length;
  return el("div", {}, shown, rest ? el("p", { class: "quiet" }, `and ${number(rest)} more`) : null);
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
