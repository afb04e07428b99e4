/* Every example of train: filters, search, sorting, and one of them opened. All of that stands in the address. */

const FILTERS = {
  all: () => true,
  failed: isFailed,
  fixed: (row) => outcomeOf(row) === "fixed",
  broken: (row) => outcomeOf(row) === "broken",
  error: (row) => row[ROW.error] !== null,
};

/** Of a sorting: what a row has; the lowest first, rows without it last. */
const SORTS = {
  given: null,
  result: (row) => row[ROW.after],
  baseline: (row) => row[ROW.before],
  loss: (row) => (row[ROW.after] === null || row[ROW.before] === null ? null : row[ROW.after] - row[ROW.before]),
  gain: (row) => (row[ROW.after] === null || row[ROW.before] === null ? null : row[ROW.before] - row[ROW.after]),
};

/** A name that the address gave, if the map has it. */
function known(map, name, other) {
  return name !== undefined && Object.hasOwn(map, name) ? name : other;
}

function createExamples(container) {
  const SEARCH_WAIT = 200; // milliseconds after the last key
  const narrow = matchMedia("(max-width: 700px)");
  const list = rowList({
    id: "example-list",
    label: "Examples of train",
    columns: [{ text: "example" }, { text: "outcome" }, { text: "before → after", class: "row-scores" }, { text: "inputs", class: "row-text" }],
    cells: (index) => cells(shown[index]),
    open: (index) => openRow(index),
    rowHeight: () => (narrow.matches ? 60 : 36),
  });
  const filters = el("div");
  const status = el("p", { class: "quiet status", id: "example-status", role: "status" });
  const progress = el("progress", { class: "search-progress", "aria-label": "Search", hidden: true });
  const box = el("input", { type: "search", id: "example-search", autocomplete: "off", spellcheck: "false", oninput: typed, onsearch: typed });
  const sort = choice("example-sort", "Sort", sortNames(), "given", (name) => State.set({ sort: name === "given" ? null : name }));
  const details = el("section", { class: "details", "aria-labelledby": "example-title", hidden: true });
  const split = el("div", { class: "examples-split" }, list.node, details);
  replace(
    container,
    el("h2", { class: "unseen" }, "Examples"),
    el(
      "div",
      { class: "toolbar", role: "search", "aria-label": "Examples" },
      filters,
      el("label", { class: "choice search", for: "example-search" }, el("span", {}, "Search, also in the details"), box),
      sort,
      el("div", { class: "found" }, status, progress),
    ),
    split,
  );
  let doc = null;
  let shown = []; // places in `examples.rows`, in the order of the list
  let search = null; // { text, rows, found, stop }
  let timer = 0;
  let opened = null; // what `details` was drawn from
  let wasOpen = null; // the id in the address
  let drawnFrom = [];

  function sortNames() {
    return [
      ["given", "as given"],
      ["result", "lowest result first"],
      ["baseline", "lowest baseline first"],
      ["loss", "most lost first"],
      ["gain", "most gained first"],
    ];
  }

  /** The id that the data set itself has for it. */
  function ownId(row) {
    return row[ROW.source] === null || row[ROW.source] === row[ROW.id] ? null : [inline(row[ROW.source], "bdi", { class: "datum quiet" }), " "];
  }

  function cells(place) {
    const row = doc.examples.rows[place];
    const outcome = outcomeMark(outcomeOf(row));
    if (row[ROW.error] !== null) outcome.append(" ", el("span", { class: "tag" }, `error: ${shownLine(row[ROW.error], 30)}`));
    return [
      inline(row[ROW.id], "span", { class: "datum row-id" }),
      outcome,
      el("span", { class: "row-scores" }, score(row[ROW.before]), el("span", { class: "quiet" }, " → "), score(row[ROW.after])),
      el("span", { class: "row-text" }, ownId(row), inline(row[ROW.head])),
    ];
  }

  function openRow(index) {
    const id = doc.examples.rows[shown[index]]?.[ROW.id];
    if (id !== undefined) State.set({ open: id }, { push: true });
  }

  function typed() {
    clearTimeout(timer);
    timer = setTimeout(() => State.set({ q: box.value }), SEARCH_WAIT);
  }

  /** Begins another search when the text or the examples are others. */
  function seek(text) {
    const rows = doc.examples.rows;
    if (search && search.text === text && search.rows.length === rows.length) return;
    search?.stop();
    search = null;
    progress.hidden = true;
    if (!text) return;
    const draw = eachFrame(() => select(State.read().params));
    const mine = searchExamples(doc, text, (done, total) => {
      progress.max = total;
      progress.value = done;
      mine.at = done;
      if (mine.found.size !== mine.told || done === total) draw();
      mine.told = mine.found.size;
    });
    search = Object.assign(mine, { text, rows, at: 0, told: mine.found.size });
    progress.hidden = false;
    progress.removeAttribute("value");
    mine.done
      .catch((error) => {
        mine.failed = error.message;
      })
      .then(() => {
        if (search !== mine) return;
        progress.hidden = true;
        mine.over = true;
        select(State.read().params);
      });
  }

  /** Which rows are in the list, and in what order. */
  function select(params) {
    const rows = doc.examples.rows;
    const filter = FILTERS[known(FILTERS, params.filter, "all")];
    const by = SORTS[known(SORTS, params.sort, "given")];
    shown = [];
    rows.forEach((row, place) => {
      if (filter(row) && (!search || search.found.has(place))) shown.push(place);
    });
    if (by) {
      const keys = rows.map((row) => by(row) ?? Infinity);
      shown.sort((one, other) => keys[one] - keys[other] || one - other);
    }
    list.update(shown.length);
    markOpen(params);
    tell(rows);
  }

  function tell(rows) {
    let text = `${number(shown.length)} of ${plural(rows.length, "example")}`;
    if (search && !search.over) text += `; searched ${number(search.at)}`;
    if (search?.failed) text += `; the search ended early: ${search.failed}`;
    if (!search || search.over || status.textContent === "") status.textContent = text;
    else {
      // A screen reader is told the end of it, not each step.
      status.setAttribute("aria-live", "off");
      status.textContent = text;
      status.setAttribute("aria-live", "polite");
    }
  }

  function markOpen(params) {
    const index = shown.indexOf(placeOf(doc, params.open));
    list.select(index < 0 ? null : index);
    return index;
  }

  function drawFilters(params) {
    const rows = doc.examples.rows;
    const names = Object.keys(FILTERS).map((name) => [name, name, rows.filter(FILTERS[name]).length]);
    const current = known(FILTERS, params.filter, "all");
    redraw(filters, switches("Filter", names, current, (name) => State.set({ filter: name === "all" ? null : name })));
  }

  function close() {
    State.set({ open: null }, { push: true });
    list.focus();
  }

  function step(by) {
    const index = markOpen(State.read().params) + by;
    if (index >= 0 && index < shown.length) openRow(index);
  }

  function detailsHead(row, index) {
    const button = (text, label, call, disabled) =>
      el("button", { type: "button", class: "small", "data-key": label, "aria-label": label, disabled, onclick: call }, text);
    return el(
      "div",
      { class: "details-head" },
      el(
        "h3",
        { id: "example-title", tabindex: "-1" },
        inline(row[ROW.id]),
        row[ROW.source] === null ? null : el("span", { class: "quiet" }, " ", inline(row[ROW.source])),
      ),
      outcomeMark(outcomeOf(row)),
      el(
        "div",
        { class: "details-buttons" },
        button("←", "Previous example", () => step(-1), index <= 0),
        button("→", "Next example", () => step(1), index < 0 || index >= shown.length - 1),
        button("Close", "Close the example", close, false),
      ),
    );
  }

  async function drawDetails(place, index) {
    const row = doc.examples.rows[place];
    const body = el("div", { class: "details-body" }, el("p", { class: "quiet" }, "Reading …"));
    redraw(details, detailsHead(row, index), body);
    try {
      const node = await exampleAt(doc, place);
      replace(body, candidatesOn(place), node);
    } catch (error) {
      replace(body, el("p", { class: "notice", role: "alert" }, `The example could not be read: ${error.message}`));
    }
  }

  /** What each candidate scored on it. */
  function candidatesOn(place) {
    const id = doc.grid.example_ids[place];
    const found = doc.grid.cells
      .map(({ places, scores }, candidate) => ({ candidate, value: scores[places.indexOf(place)] }))
      .filter((one) => one.value !== undefined);
    if (found.length < 3) return null; // both sides show them
    return folded({ class: "all-scores" }, `Scores of ${plural(found.length, "candidate")}`, () =>
      el(
        "ul",
        { class: "turn-runs" },
        found.map(({ candidate, value }) =>
          el("li", {}, el("a", { href: State.link("candidates", { candidate, example: id }) }, candidateName(candidate)), ` ${score(value)}`),
        ),
      ),
    );
  }

  function showOpen(params) {
    const place = placeOf(doc, params.open);
    details.hidden = place < 0;
    split.classList.toggle("opened", place >= 0);
    const index = markOpen(params);
    const from = place < 0 ? null : JSON.stringify([doc.examples.rows[place], doc.examples.compared_with, doc.result === null]);
    const isOther = wasOpen !== (params.open ?? null);
    wasOpen = params.open ?? null;
    if (from !== null && from !== opened) drawDetails(place, index);
    else if (from !== null) details.firstChild.replaceWith(detailsHead(doc.examples.rows[place], index));
    opened = from;
    if (isOther && place < 0) list.reveal();
    if (!isOther || place < 0) return;
    if (index >= 0) list.reveal(index);
    details.scrollTop = 0;
    document.getElementById("example-title").focus({ preventScroll: true });
  }

  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    close();
  });

  return {
    update(newer, params) {
      doc = newer;
      if (document.activeElement !== box) box.value = params.q ?? "";
      sort.querySelector("select").value = known(SORTS, params.sort, "given");
      seek(params.q ?? "");
      drawFilters(params);
      const from = [doc.examples, params.filter, params.sort, search];
      if (from.some((one, at) => one !== drawnFrom[at])) select(params);
      drawnFrom = from;
      showOpen(params);
    },
  };
}
