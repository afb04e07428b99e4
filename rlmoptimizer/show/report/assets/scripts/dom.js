/* Elements. Text enters the page here and in text.js, by text nodes only: nothing that was read is ever parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes of null and false are left out; "on..." adds a listener; children are nodes, texts or null. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return put(node, children);
}

function put(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** Scroll a box, not the page, so that one of its children is in sight. */
function reveal(box, child) {
  const [outer, inner] = [box.getBoundingClientRect(), child.getBoundingClientRect()];
  if (inner.top < outer.top) box.scrollTop -= outer.top - inner.top;
  else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
}

/** In the place of what the node had. */
function replace(node, ...children) {
  node.replaceChildren();
  return put(node, children);
}

/** The same, but whoever had the focus keeps it: by `id`, or by `data-key`, which stays the same between drawings. */
function redraw(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  const same = focused && (focused.id ? ["id", focused.id] : ["data-key", focused.dataset.key]);
  replace(node, ...children);
  if (!same || same[1] === undefined) return;
  const again = [...node.querySelectorAll(`[${same[0]}]`)].find((one) => one.getAttribute(same[0]) === same[1]);
  if (again) again.focus({ preventScroll: true });
}

/** Tell a screen reader what has changed. */
function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Seen by screen readers only. */
function unseen(text) {
  return el("span", { class: "unseen" }, text);
}

/** What is folded, and what is made only when it is opened first. `make` gives nodes, or a promise of them. */
function folded(attributes, summary, make) {
  const body = el("div", { class: "folded-body" });
  const details = el("details", attributes, el("summary", {}, summary), body);
  let made = false;
  const open = async () => {
    if (made || !details.open) return;
    made = true;
    replace(body, await make());
  };
  details.addEventListener("toggle", open);
  if (attributes.open) open();
  return details;
}

/** A table in a box that scrolls. `columns` are texts, those of numbers begin with "#"; `rows` are lists of nodes. */
function table(columns, rows, caption = null) {
  const cell = (tag, attributes, at, content) =>
    el(tag, { ...attributes, class: columns[at].startsWith("#") ? "number" : null }, content);
  const head = columns.map((name, at) => (name ? cell("th", { scope: "col" }, at, name.replace("#", "")) : el("td")));
  const body = rows.map((row) =>
    el("tr", {}, row.map((content, at) => (at ? cell("td", {}, at, content) : el("th", { scope: "row" }, content)))),
  );
  const titled = columns.some((name, at) => at && name.replace("#", ""));
  return el(
    "div",
    { class: "table-holder" },
    el("table", {}, caption && el("caption", {}, caption), titled && el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
  );
}

/** A select with a visible label. `options` are [value, text]. */
function choice(id, label, options, value, changed) {
  const select = el("select", { id, onchange: () => changed(select.value) });
  for (const [one, text] of options) select.append(el("option", { value: one }, shownLine(text)));
  select.value = value;
  return el("label", { class: "choice", for: id }, el("span", {}, label), select);
}

/** Exclusive buttons. `options` are [value, text, count or null]. */
function switches(label, options, value, changed) {
  const buttons = options.map(([one, text, count = null]) =>
    el(
      "button",
      {
        type: "button",
        class: "switch",
        "data-key": `${label}:${one}`,
        "aria-pressed": String(one === value),
        onclick: () => changed(one),
      },
      text[0].toUpperCase() + text.slice(1),
      count === null ? null : el("span", { class: "count" }, ` ${number(count)}`),
    ),
  );
  return el("div", { class: "switches", role: "group", "aria-label": label }, buttons);
}

/** `call` at most once a frame, however often it is asked for. */
function eachFrame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}

/** Lets the page breathe between two pieces of long work. */
function breath() {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
