/* Score against budget spent: one mark an evaluation, and the best so far as a line. Drawn by uPlot. */

/** A chart has `node` and `update(doc)`. */
function scoreChart() {
  const HEIGHT = 300;
  const RADII = [3, 9]; // of the marks, by the number of examples
  const UNITS = [1, 2, 5].map((one) => [...Array(12).keys()].map((power) => one * 10 ** power)).flat().sort((one, other) => one - other); // between two ticks
  const holder = el("div", { class: "chart-holder" });
  const bubble = el("div", { class: "bubble", hidden: true });
  const frame = el(
    "div",
    {
      class: "chart",
      id: "chart",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "chart",
      "aria-label": "Score against budget spent. Left and right arrows move between the evaluations, Enter opens one.",
    },
    holder,
    bubble,
  );
  let plot = null;
  let runs = []; // those with a score, by units spent
  let doc = null;
  let active = null; // place in `runs`
  let tapped = false; // a finger has just chosen it: the next tap opens it

  function radius(run) {
    const most = Math.max(...runs.map((one) => one.evaluated_count), 1);
    return RADII[0] + (RADII[1] - RADII[0]) * Math.sqrt(run.evaluated_count / most);
  }

  /** A circle for train, a diamond for val, a square for test: told apart without colours. */
  function mark(context, split, x, y, size) {
    context.beginPath();
    if (split === "val") {
      context.moveTo(x, y - size * 1.25);
      context.lineTo(x + size * 1.25, y);
      context.lineTo(x, y + size * 1.25);
      context.lineTo(x - size * 1.25, y);
      context.closePath();
    } else if (split === "test") context.rect(x - size, y - size, 2 * size, 2 * size);
    else context.arc(x, y, size, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }

  function drawMarks(chart) {
    const context = chart.ctx;
    const ratio = devicePixelRatio;
    const colours = Object.fromEntries(SPLITS.map((split) => [split, Theme.colour(split)]));
    const ground = Theme.colour("panel");
    context.save();
    runs.forEach((run, place) => {
      const x = chart.valToPos(run.spent, "x", true);
      const y = chart.valToPos(run.score, "y", true);
      const size = radius(run) * ratio;
      context.strokeStyle = context.fillStyle = colours[run.split];
      if (run.standard_error) {
        const [low, high] = [-1.96, 1.96].map((times) =>
          chart.valToPos(Math.max(0, Math.min(100, run.score + times * run.standard_error)), "y", true),
        );
        context.lineWidth = 1.5 * ratio;
        context.beginPath();
        context.moveTo(x, low);
        context.lineTo(x, high);
        for (const end of [low, high]) {
          context.moveTo(x - 4 * ratio, end);
          context.lineTo(x + 4 * ratio, end);
        }
        context.stroke();
      }
      context.globalAlpha = run.split === "train" ? 0.75 : 1;
      context.strokeStyle = place === active ? Theme.colour("text") : ground;
      context.lineWidth = (place === active ? 2.5 : 1.5) * ratio;
      mark(context, run.split, x, y, size);
      context.globalAlpha = 1;
    });
    context.restore();
  }

  function axis(values, label) {
    return {
      stroke: Theme.colour("quiet"),
      grid: { stroke: Theme.colour("line"), width: 1 },
      ticks: { stroke: Theme.colour("line"), width: 1 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      label,
      labelSize: 20,
      values: (_, splits) => splits.map(values),
    };
  }

  function options(width) {
    const spent = Math.max(0, ...runs.map((run) => run.spent), ...doc.best_so_far.map((point) => point.spent));
    const most = spent || doc.budget.limit || 1; // with nothing spent: what there is to spend
    return {
      width,
      height: HEIGHT,
      padding: [14, 14, 0, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [-most * 0.02, most * 1.03] }, y: { range: [-3, 103] } },
      axes: [
        { ...axis(compact, "units spent"), size: 34, incrs: UNITS, space: Math.max(60, width / 8) },
        { ...axis(String, "score"), size: 40, splits: () => [0, 25, 50, 75, 100] },
      ],
      series: [
        {},
        {
          label: "best so far",
          stroke: Theme.colour("accent"),
          width: 2,
          points: { show: false },
          spanGaps: true,
          paths: uPlot.paths.stepped({ align: 1 }),
        },
      ],
      hooks: { draw: [drawMarks] },
    };
  }

  /** The line goes on to the last evaluation. */
  function line() {
    const found = doc.best_so_far.filter((point) => point.score !== null);
    const last = runs.length ? runs[runs.length - 1].spent : 0;
    if (found.length && last > found[found.length - 1].spent) found.push({ ...found[found.length - 1], spent: last });
    return [found.map((point) => point.spent), found.map((point) => point.score)];
  }

  function redrawAll() {
    if (!doc || !holder.clientWidth) return;
    plot?.destroy();
    plot = new uPlot(options(holder.clientWidth), line(), holder);
    if (active !== null) point(Math.min(active, runs.length - 1));
  }

  function words(run) {
    const changed = doc.candidates[run.candidate]?.changed ?? [];
    return [
      `${run.run_id} · ${run.split}${run.baseline ? " · baseline" : ""}`,
      `score ${score(run.score)}${run.standard_error ? ` ± ${score(run.standard_error)}` : ""}`,
      `${number(run.evaluated_count)} of ${plural(run.planned_count, "example")}, ${number(run.passed_count)} passed`,
      `${candidateName(run.candidate)}: ${changed.length ? `changed ${changed.map((name) => shownLine(name, 60)).join(", ")}` : "unchanged prompts"}`,
      `${number(run.spent)} units spent, ${turnName(run.turn)}`,
    ];
  }

  function point(place) {
    active = place;
    if (!plot) return;
    plot.redraw(false);
    bubble.hidden = place === null || !runs.length;
    if (bubble.hidden) return;
    const run = runs[place];
    const [first, ...more] = words(run);
    replace(bubble, el("strong", {}, first), more.map((text) => el("div", {}, text)));
    const left = plot.valToPos(run.spent, "x") + plot.over.offsetLeft;
    const top = plot.valToPos(run.score, "y") + plot.over.offsetTop;
    const right = left > frame.clientWidth / 2;
    bubble.style.left = `${right ? Math.max(4, left - bubble.offsetWidth - 14) : Math.min(left + 14, frame.clientWidth - bubble.offsetWidth - 4)}px`;
    bubble.style.top = `${Math.max(0, Math.min(HEIGHT - bubble.offsetHeight, top - 20))}px`;
  }

  function nearest(event) {
    const box = plot.over.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [found, least] = [null, 30 ** 2];
    runs.forEach((run, place) => {
      const away = (plot.valToPos(run.spent, "x") - x) ** 2 + (plot.valToPos(run.score, "y") - y) ** 2;
      if (away <= least) [found, least] = [place, away];
    });
    return found;
  }

  function openActive() {
    if (active !== null && runs[active]) State.go(State.link("candidates", { candidate: runs[active].candidate }));
  }

  frame.addEventListener("pointermove", (event) => {
    if (!plot) return;
    const found = nearest(event);
    if (found !== active) point(found);
    frame.classList.toggle("pointing", found !== null);
  });
  frame.addEventListener("pointerdown", (event) => {
    const found = plot && event.pointerType === "touch" ? nearest(event) : active;
    tapped = found !== active;
    if (tapped) point(found);
  });
  frame.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") point(null);
  });
  frame.addEventListener("click", () => {
    if (!tapped) openActive();
  });
  frame.addEventListener("blur", () => point(null));
  frame.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -runs.length, End: runs.length };
    if (event.key === "Enter") openActive();
    else if (event.key === "Escape") point(null);
    else if (event.key in moves && runs.length) {
      point(Math.max(0, Math.min(runs.length - 1, (active ?? -1) + moves[event.key])));
      announce(words(runs[active]).join(", "));
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(eachFrame(redrawAll)).observe(holder);
  Theme.onChange(redrawAll);

  return {
    node: frame,
    update(newer) {
      doc = newer;
      runs = doc.runs.filter((run) => run.score !== null && run.spent !== null && run.evaluated_count > 0);
      runs.sort((one, other) => one.spent - other.spent);
      redrawAll();
    },
  };
}
