/* Each candidate's score on each example of train. A canvas that draws only the cells in sight, so any number will do.

   A cell is filled from below as far as its score reaches, and has a colour beside: it can be read without either. */

/** The grid has `node` and `update(doc, { candidate, example, order })`; `open(candidate, place of the example)`. */
function scoreGrid(open) {
  const CELL = { width: 14, height: 20 };
  const LEFT = 48; // the candidates' names
  const TOP = 20; // the numbers of the columns
  const SHADES = 7;
  const canvas = el("canvas", { class: "grid-canvas", "aria-hidden": "true" });
  const space = el("div", { class: "grid-space" });
  const spoken = el("span", { role: "gridcell", id: "grid-cell" });
  const spokenRow = el("span", { role: "row", class: "unseen" }, spoken);
  const bubble = el("div", { class: "bubble", hidden: true });
  const scroller = el(
    "div",
    { class: "grid-scroller", id: "grid", role: "grid", tabindex: "0", "aria-label": "Scores of the candidates on the examples of train", "aria-activedescendant": "grid-cell" },
    canvas,
    space,
    spokenRow,
  );
  const frame = el("div", { class: "grid-frame" }, scroller, bubble);
  let doc = null;
  let scores = []; // candidate -> Float32Array by the examples' places; NaN: not measured
  let columns = []; // column -> the example's place
  let read = null; // the `grid` that `scores` was made from
  let order = null;
  let selected = { candidate: null, place: null };
  let cursor = { row: 0, column: 0 };
  let shades = [];

  function readScores() {
    if (read === doc.grid) return;
    read = doc.grid;
    order = null;
    scores = doc.grid.cells.map(({ places, scores: values }) => {
      const row = new Float32Array(doc.grid.example_ids.length).fill(NaN);
      places.forEach((place, at) => (row[place] = values[at]));
      return row;
    });
  }

  /** What the columns are sorted by; the lowest first, those without it last. */
  function keys(name) {
    const shown = comparedWith(doc) ?? 0;
    const count = doc.grid.example_ids.length;
    return Array.from({ length: count }, (_, place) => {
      if (name === "result") return scores[shown]?.[place] ?? NaN;
      if (name === "change") return (scores[shown]?.[place] ?? NaN) - (scores[0]?.[place] ?? NaN);
      const known = scores.map((row) => row[place]).filter((value) => !Number.isNaN(value));
      return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
    });
  }

  function sortColumns(name) {
    if (order === name) return;
    order = name;
    columns = doc.grid.example_ids.map((_, place) => place);
    if (name === "given") return;
    const by = keys(name).map((key) => (Number.isNaN(key) ? Infinity : key));
    columns.sort((one, other) => by[one] - by[other] || one - other);
  }

  function readColours() {
    const rgb = (name) => Theme.colour(name).match(/[\d.]+/g).slice(0, 3).map(Number);
    const stops = [rgb("worse"), rgb("middle"), rgb("better")];
    shades = Array.from({ length: SHADES }, (_, at) => {
      const place = (2 * at) / (SHADES - 1);
      const first = Math.min(1, Math.floor(place));
      const mixed = stops[first].map((value, part) => Math.round(value + (stops[first + 1][part] - value) * (place - first)));
      return `rgb(${mixed.join(" ")})`;
    });
  }

  function drawCell(context, value, x, y, colours) {
    if (Number.isNaN(value)) return;
    const [width, height] = [CELL.width - 2, CELL.height - 3];
    const filled = Math.max(2, (height * value) / 100);
    context.fillStyle = colours.track;
    context.fillRect(x, y, width, height);
    context.fillStyle = shades[Math.round((value / 100) * (SHADES - 1))];
    context.fillRect(x, y + height - filled, width, filled);
  }

  function draw() {
    if (!doc || !scroller.clientWidth) return;
    const ratio = devicePixelRatio;
    const [width, height] = [scroller.clientWidth, scroller.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.style.marginBottom = `${-height}px`; // it takes no room of its own
    }
    const context = canvas.getContext("2d");
    const colours = Object.fromEntries(["panel", "text", "quiet", "accent"].map((name) => [name, Theme.colour(name)]));
    colours.track = Theme.colour("raised");
    colours.band = Theme.colour("accent-soft");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = colours.panel;
    context.fillRect(0, 0, width, height);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const [left, top] = [scroller.scrollLeft, scroller.scrollTop];
    const firstColumn = Math.floor(left / CELL.width);
    const lastColumn = Math.min(columns.length, Math.ceil((left + width - LEFT) / CELL.width));
    const firstRow = Math.floor(top / CELL.height);
    const lastRow = Math.min(scores.length, Math.ceil((top + height - TOP) / CELL.height));
    for (let row = firstRow; row < lastRow; row++) {
      const y = TOP + row * CELL.height - top;
      if (row === selected.candidate) {
        context.fillStyle = colours.band;
        context.fillRect(0, y - 1, width, CELL.height);
      }
      for (let column = firstColumn; column < lastColumn; column++) {
        drawCell(context, scores[row][columns[column]], LEFT + column * CELL.width - left, y, colours);
      }
    }
    outline(context, colours, left, top);
    drawNames(context, colours, { width, height, top, left, firstRow, lastRow, firstColumn, lastColumn });
  }

  function outline(context, colours, left, top) {
    const box = (row, column, colour) => {
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.strokeRect(LEFT + column * CELL.width - left - 1, TOP + row * CELL.height - top - 1, CELL.width, CELL.height - 1);
    };
    const at = selected.place === null ? -1 : columns.indexOf(selected.place);
    if (at >= 0 && selected.candidate !== null) box(selected.candidate, at, colours.accent);
    if (document.activeElement === scroller && scores.length && columns.length) box(cursor.row, cursor.column, colours.text);
  }

  /** Over the cells, so that those that are scrolled away do not show through. */
  function drawNames(context, colours, { width, height, top, left, firstRow, lastRow, firstColumn, lastColumn }) {
    const shown = doc.candidates.find((one) => one.is_result)?.index;
    context.fillStyle = colours.panel;
    context.fillRect(0, 0, LEFT - 3, height);
    context.fillRect(0, 0, width, TOP - 2);
    context.textAlign = "left";
    for (let row = firstRow; row < lastRow; row++) {
      const y = TOP + row * CELL.height - top + (CELL.height - 3) / 2;
      if (y < TOP) continue;
      const strong = row === selected.candidate || row === shown;
      context.fillStyle = strong ? colours.text : colours.quiet;
      context.font = `${strong ? "600 " : ""}12px system-ui, sans-serif`;
      context.fillText(candidateName(row) + (row === shown ? " ★" : ""), 6, y);
    }
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = colours.quiet;
    for (let column = Math.ceil(firstColumn / 10) * 10; column < lastColumn; column += 10) {
      const x = LEFT + column * CELL.width - left;
      if (x >= LEFT - 2) context.fillText(number(column + 1), x, TOP / 2 - 1);
    }
  }

  function words(row, column) {
    const place = columns[column];
    const value = scores[row][place];
    const from = scores[0][place];
    return [
      `${candidateName(row)} on ${shownLine(doc.grid.example_ids[place], 60)}`,
      Number.isNaN(value) ? "not measured" : `score ${score(value)}`,
      row && !Number.isNaN(from) ? `baseline ${score(from)}` : null,
    ].filter(Boolean);
  }

  function speak() {
    if (!scores.length || !columns.length) return;
    spokenRow.setAttribute("aria-rowindex", String(cursor.row + 1));
    spoken.setAttribute("aria-colindex", String(cursor.column + 1));
    spoken.textContent = words(cursor.row, cursor.column).join(", ");
  }

  function show(row, column) {
    const [first, ...more] = words(row, column);
    replace(bubble, el("strong", {}, first), more.map((text) => el("div", {}, text)));
    bubble.hidden = false;
    const x = LEFT + column * CELL.width - scroller.scrollLeft;
    const y = TOP + row * CELL.height - scroller.scrollTop;
    const right = x > scroller.clientWidth / 2;
    bubble.style.left = `${right ? x - bubble.offsetWidth - 6 : x + CELL.width + 6}px`;
    bubble.style.top = `${Math.max(0, Math.min(scroller.clientHeight - bubble.offsetHeight, y - 10))}px`;
  }

  function cellAt(event) {
    const box = scroller.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (x < LEFT - 2 || y < TOP - 2 || y > scroller.clientHeight) return null;
    const column = Math.floor((x - LEFT + scroller.scrollLeft) / CELL.width);
    const row = Math.floor((y - TOP + scroller.scrollTop) / CELL.height);
    return row >= 0 && column >= 0 && row < scores.length && column < columns.length ? { row, column } : null;
  }

  function reveal({ row, column }) {
    const [x, y] = [column * CELL.width, row * CELL.height];
    const [width, height] = [scroller.clientWidth - LEFT, scroller.clientHeight - TOP];
    if (x < scroller.scrollLeft) scroller.scrollLeft = x;
    else if (x + CELL.width > scroller.scrollLeft + width) scroller.scrollLeft = x + CELL.width - width;
    if (y < scroller.scrollTop) scroller.scrollTop = y;
    else if (y + CELL.height > scroller.scrollTop + height) scroller.scrollTop = y + CELL.height - height;
  }

  function pressed(event) {
    if (!scores.length || !columns.length || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor((scroller.clientWidth - LEFT) / CELL.width) - 1);
    const most = { row: scores.length - 1, column: columns.length - 1 };
    const moves = {
      ArrowRight: [0, 1],
      ArrowLeft: [0, -1],
      ArrowDown: [1, 0],
      ArrowUp: [-1, 0],
      PageDown: [0, page],
      PageUp: [0, -page],
      Home: [event.ctrlKey ? -most.row : 0, -most.column],
      End: [event.ctrlKey ? most.row : 0, most.column],
    };
    if (event.key === "Enter" || event.key === " ") open(cursor.row, columns[cursor.column]);
    else if (event.key === "Escape") bubble.hidden = true;
    else if (event.key in moves) {
      const [down, right] = moves[event.key];
      cursor = {
        row: Math.max(0, Math.min(most.row, cursor.row + down)),
        column: Math.max(0, Math.min(most.column, cursor.column + right)),
      };
      reveal(cursor);
      speak();
      draw();
      show(cursor.row, cursor.column);
    } else return;
    event.preventDefault();
  }

  const drawSoon = eachFrame(draw);
  scroller.addEventListener("scroll", () => {
    bubble.hidden = true;
    drawSoon();
  }, { passive: true });
  scroller.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (cell) show(cell.row, cell.column);
    else bubble.hidden = true;
    scroller.classList.toggle("pointing", cell !== null);
  });
  scroller.addEventListener("pointerleave", () => (bubble.hidden = true));
  scroller.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    cursor = cell;
    speak();
    open(cell.row, columns[cell.column]);
  });
  scroller.addEventListener("keydown", pressed);
  scroller.addEventListener("focus", drawSoon);
  scroller.addEventListener("blur", () => {
    bubble.hidden = true;
    drawSoon();
  });
  new ResizeObserver(drawSoon).observe(scroller);
  const recolour = () => {
    readColours();
    drawSoon();
  };
  Theme.onChange(recolour);

  return {
    node: frame,
    update(newer, params) {
      doc = newer;
      if (!shades.length) readColours();
      readScores();
      sortColumns(["result", "change", "mean"].includes(params.order) ? params.order : "given");
      const place = placeOf(doc, params.example);
      selected = { candidate: params.candidate === undefined ? null : Number(params.candidate), place: place < 0 ? null : place };
      space.style.width = `${LEFT + columns.length * CELL.width + 8}px`;
      space.style.height = `${TOP + scores.length * CELL.height + 2}px`;
      scroller.setAttribute("aria-rowcount", String(scores.length));
      scroller.setAttribute("aria-colcount", String(columns.length));
      cursor.row = Math.min(cursor.row, Math.max(0, scores.length - 1));
      speak();
      drawSoon();
    },
  };
}
