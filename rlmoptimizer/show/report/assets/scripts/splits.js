/* Baseline to result on each split, as figures and as a small drawing. */

const Splits = (() => {
  const WIDTH = 400;
  const HEIGHT = 40;
  const SIDE = 8; // left and right of the scale, for half a dot

  function at(value) {
    return SIDE + (Math.max(0, Math.min(100, value)) / 100) * (WIDTH - 2 * SIDE);
  }

  /** From the baseline's dot to the result's, above a scale of 0 to 100; the band is the 95% interval. */
  function drawing(found) {
    const y = 16;
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "dumbbell", "aria-hidden": "true" });
    picture.append(svg("line", { x1: SIDE, x2: WIDTH - SIDE, y1: y, y2: y, class: "scale" }));
    for (const tick of [0, 25, 50, 75, 100]) {
      const anchor = tick === 0 ? "start" : tick === 100 ? "end" : "middle";
      const x = tick === 0 ? 0 : tick === 100 ? WIDTH : at(tick);
      picture.append(
        svg("line", { x1: at(tick), x2: at(tick), y1: y - 4, y2: y + 4, class: "scale" }),
        svg("text", { x, y: HEIGHT - 3, "text-anchor": anchor, class: "tick" }, tick),
      );
    }
    const before = svg("circle", { cx: at(found.baseline), cy: y, r: 5, class: "before" });
    if (found.result === null) {
      picture.append(before);
      return picture;
    }
    if (found.interval) {
      const [low, high] = found.interval.map((end) => at(found.baseline + end));
      picture.append(svg("rect", { x: low, width: Math.max(1, high - low), y: y - 7, height: 14, rx: 3, class: "interval" }));
    }
    const direction = found.difference > 0 ? "rise" : found.difference < 0 ? "fall" : "level";
    picture.append(
      svg("line", { x1: at(found.baseline), x2: at(found.result), y1: y, y2: y, class: `change ${direction}` }),
      before,
      svg("circle", { cx: at(found.result), cy: y, r: 6, class: `after ${direction}` }),
    );
    return picture;
  }

  /** Better, same and worse as lengths of one bar. */
  function shares(found) {
    const all = found.better + found.same + found.worse;
    if (!all) return null;
    const bar = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "shares", "aria-hidden": "true" });
    let x = 0;
    for (const name of ["better", "same", "worse"]) {
      const width = (100 * found[name]) / all;
      bar.append(svg("rect", { x, y: 0, width, height: 6, class: `share-${name}` }));
      x += width;
    }
    return bar;
  }

  function counts(found) {
    return el(
      "p",
      { class: "split-counts" },
      el("span", { class: "outcome-fixed" }, `▲ ${number(found.better)} better`),
      el("span", { class: "outcome-broken" }, `▼ ${number(found.worse)} worse`),
      el("span", { class: "quiet" }, `= ${number(found.same)} same`),
      found.left_out ? el("span", { class: "quiet" }, `${number(found.left_out)} left out`) : null,
    );
  }

  function chance(p) {
    if (p === 0) return "p < 1e-300";
    return `p = ${p < 0.0001 ? p.toExponential(1) : p.toPrecision(2)}`;
  }

  function interval(found) {
    if (!found.interval) return found.n === 1 ? "one example: no interval" : null;
    const [low, high] = found.interval;
    return `95% interval ${points(low)} to ${points(high)}; ${chance(found.p_value)}`;
  }

  /** Who looks often chooses what was lucky there. */
  function looks(doc) {
    const looks = doc.result.val_checkpoints;
    return el("p", { class: "quiet" }, `looked at ${looks === 1 ? "once" : `${looks} times`} while prompts were chosen`);
  }

  function card(doc, split, examples, ...nodes) {
    const title = [split, el("span", { class: "quiet" }, ` ${examples}`), doc.result?.verdict_split === split ? el("span", { class: "tag" }, "verdict") : null];
    return el("article", { class: "split" }, el("h3", {}, title), nodes, split === "val" && doc.result ? looks(doc) : null);
  }

  function whyAlone(doc) {
    if (leadingCandidate(doc)) return doc.result ? "The result has no score here." : "The best so far has no score here.";
    return doc.result ? "The unchanged prompts are given back." : "Nothing is better yet.";
  }

  /** Of a split on which there is nothing to compare the unchanged program with. */
  function baselineCard(doc, split, found) {
    const all = doc.task.splits[split];
    return card(
      doc,
      split,
      found.n === all ? plural(all, "example") : `${number(found.n)} of ${plural(all, "example")}`,
      el("p", { class: "split-figures" }, el("strong", { class: "figure-after" }, score(found.score)), el("span", { class: "quiet" }, " baseline")),
      drawing({ baseline: found.score, result: null }),
      el("p", { class: "quiet" }, whyAlone(doc)),
    );
  }

  function comparisonCard(doc, split, found) {
    return card(
      doc,
      split,
      plural(found.n, "example"),
      el(
        "p",
        { class: "split-figures" },
        unseen("from "),
        el("span", { class: "figure-before" }, score(found.baseline)),
        el("span", { class: "arrow", "aria-hidden": "true" }, " → "),
        unseen(" to "),
        el("strong", { class: "figure-after" }, score(found.result)),
        el("span", { class: `figure-change change-${Math.sign(found.difference)}` }, ` ${points(found.difference)}`),
        unseen(` points, ${comparedName(doc)}`),
      ),
      drawing(found),
      el("p", { class: "quiet" }, interval(found)),
      shares(found),
      counts(found),
    );
  }

  function cards(doc) {
    const found = leadingCandidate(doc) ? comparedSplits(doc) : {}; // the unchanged program is not compared with itself
    const made = (doc.result ? SPLITS : ["train", "val"]).map((split) => {
      if (found[split]?.n) return comparisonCard(doc, split, found[split]);
      const baseline = scoreOn(doc.candidates[0], split);
      return baseline && baselineCard(doc, split, baseline);
    }).filter(Boolean);
    if (!made.length) return el("p", { class: "quiet" }, "No score yet: the baseline is being measured.");
    return el("div", { class: "splits" }, made);
  }

  return { cards };
})();
