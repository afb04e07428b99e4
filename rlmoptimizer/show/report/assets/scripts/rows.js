/* A list of any length of which only the rows in sight exist. One stop of the Tab key; arrows move within it. */

/**
 * `columns` are headings, `cells(index)` gives the nodes of a row, `open(index)` is called by a click and by Enter.
 * The list has `node`, `update(count)`, `select(index)` (null: none), `reveal(index)` and `focus()`.
 */
function rowList({ id, label, columns, cells, open, rowHeight }) {
  const SPARE = 8; // rows beyond the edges, for smooth scrolling
  const space = el("div", { class: "rows-space", role: "rowgroup" });
  const headings = el("div", { class: "row row-head", role: "row", "aria-rowindex": 1 });
  for (const column of columns) headings.append(el("span", { role: "columnheader", class: column.class ?? null }, column.text));
  const scroller = el("div", { class: "rows", id, role: "grid", tabindex: "0", "aria-label": label }, headings, space);
  const drawn = new Map(); // index -> element
  let count = 0;
  let active = 0; // where the arrows are
  let selected = null; // what is open

  function visibleRange() {
    const height = rowHeight();
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - SPARE);
    const last = Math.min(count, Math.ceil((scroller.scrollTop + scroller.clientHeight) / height) + SPARE);
    return [first, last];
  }

  function draw() {
    const [first, last] = visibleRange();
    for (const [index, row] of drawn) {
      if (index >= first && index < last) continue;
      row.remove();
      drawn.delete(index);
    }
    for (let index = first; index < last; index++) if (!drawn.has(index)) space.append(make(index));
    mark();
  }

  function make(index) {
    const row = el("div", { class: "row", role: "row", id: `${id}-${index}`, "aria-rowindex": index + 2 });
    for (const cell of cells(index)) {
      cell.setAttribute("role", "gridcell");
      row.append(cell);
    }
    row.style.top = `${index * rowHeight()}px`;
    row.addEventListener("click", () => {
      active = index;
      open(index);
    });
    drawn.set(index, row);
    return row;
  }

  function mark() {
    for (const [index, row] of drawn) {
      row.classList.toggle("active", index === active);
      row.setAttribute("aria-selected", String(index === selected));
    }
    if (drawn.has(active)) scroller.setAttribute("aria-activedescendant", `${id}-${active}`);
    else scroller.removeAttribute("aria-activedescendant");
  }

  /** Scroll to a row; without one to where the arrows are, for a list that was not on the screen. */
  function reveal(index = active) {
    active = Math.max(0, Math.min(count - 1, index));
    const height = rowHeight();
    const [top, bottom] = [active * height, (active + 1) * height];
    const seen = scroller.clientHeight - headings.offsetHeight;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + seen) scroller.scrollTop = bottom - seen;
    draw();
  }

  function update(newCount) {
    count = newCount;
    scroller.setAttribute("aria-rowcount", String(count + 1));
    space.style.height = `${count * rowHeight()}px`;
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    active = Math.max(0, Math.min(active, count - 1));
    draw();
  }

  function pressed(event) {
    if (!count || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(scroller.clientHeight / rowHeight()) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -count, End: count };
    if (event.key in steps) reveal(active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") open(active);
    else return;
    event.preventDefault();
  }

  scroller.addEventListener("scroll", eachFrame(draw), { passive: true });
  scroller.addEventListener("keydown", pressed);
  // The width decides how high a row is; the height, how many are seen.
  new ResizeObserver(eachFrame(() => update(count))).observe(scroller);

  return {
    node: scroller,
    update,
    reveal,
    focus: () => scroller.focus(),
    select(index) {
      selected = index;
      if (index !== null) active = index;
      mark();
    },
  };
}
