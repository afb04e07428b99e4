/* The first view: how much better, how sure, what it took. While the work goes on: how far it has come. */

const MOST_STEPS = 8; // whose names stand in the head

function createOverview(container) {
  const head = el("section", { class: "head", "aria-labelledby": "head-title" });
  const chart = scoreChart();
  const legend = el("ul", { class: "legend" });
  const runTable = el("div", { class: "all-runs", tabindex: "0", role: "region", "aria-label": "All evaluations" });
  const chartPart = el(
    "section",
    { "aria-labelledby": "chart-title" },
    el("h2", { id: "chart-title" }, "Score against budget spent"),
    legend,
    chart.node,
    el("details", { class: "table-toggle" }, el("summary", {}, "All evaluations as a table"), runTable),
  );
  const spending = el("section", { "aria-labelledby": "spending-title" });
  replace(container, head, chartPart, spending);

  function drawLegend(doc) {
    const shape = (split, node) => el("li", {}, svg("svg", { viewBox: "0 0 14 14", class: `key key-${split}`, "aria-hidden": "true" }, node));
    const items = [
      ["train", svg("circle", { cx: 7, cy: 7, r: 5 }), "train"],
      ["val", svg("path", { d: "M7 1 13 7 7 13 1 7Z" }), "val (a checkpoint)"],
      ["test", svg("rect", { x: 2, y: 2, width: 10, height: 10 }), "test"],
      ["best", svg("path", { d: "M0 10H7V4H14", fill: "none" }), "best so far"],
    ];
    const drawn = items.filter(([name]) => name === "best" || doc.task.splits[name]);
    const note = el("li", { class: "quiet" }, "larger: more examples; whiskers: 95% interval");
    replace(legend, drawn.map(([name, node, text]) => put(shape(name, node), [text])), note);
  }

  function verdict(doc) {
    if (doc.result) {
      const kind = doc.result.verdict.replaceAll(" ", "-");
      return [
        el("h2", { id: "head-title", class: "verdict" }, el("span", { class: `badge badge-${kind}` }, doc.result.verdict)),
        el("p", { class: "lead" }, inline(doc.result.verdict_text, "span", { dir: "auto" })),
        branch(doc),
      ];
    }
    const best = doc.so_far?.best ?? null;
    return [
      el("h2", { id: "head-title", class: "verdict" }, el("span", { class: "badge" }, stateName(doc))),
      el(
        "p",
        { class: "lead" },
        `${stateText(doc)} `,
        doc.asked.pausing && doc.state !== "paused" ? "A pause is asked for: the agent waits before its next turn. " : null,
        stateName(doc) === "interrupted" && doc.dead_since ? `Its last sign was on ${moment(doc.dead_since)}. ` : null,
        best ? ["The best candidate so far is ", candidateLink(best), "."] : ["No candidate is better than the unchanged prompts yet. ", unmeasured(doc)],
      ),
      branch(doc),
    ];
  }

  /** What was good on train alone is not the best: it may be good there only. */
  function unmeasured(doc) {
    const all = doc.task.splits.val;
    if (doc.scored_split !== "val") return null;
    const found = doc.candidates.filter((one) => !one.is_baseline && scoreOn(one, "train") && scoreOn(one, "val")?.n !== all);
    if (!found.length) return null;
    const names = found.length > 3 ? plural(found.length, "candidate") : found.map((one, at) => [at ? ", " : "", candidateLink(one.index)]);
    return ["Val decides, and ", names, found.length > 1 ? " were" : " was", " not run on all of it."];
  }

  function branch(doc) {
    if (!doc.task.branch) return null;
    return el("p", { id: "branched-from" }, "A branch of ", branchedFrom(doc), stateName(doc) === "not begun" ? ": it begins with the prompts of that run." : ": it began with the prompts of that run.");
  }

  function fact(name, value, note = null) {
    return el("div", { class: "fact" }, el("dt", {}, name), el("dd", {}, value, note ? el("span", { class: "note" }, note) : null));
  }

  function budgetNote(doc) {
    const { spent, limit } = doc.budget;
    return svg(
      "svg",
      { viewBox: "0 0 100 4", preserveAspectRatio: "none", class: "meter", role: "img", "aria-label": `${number(spent)} of ${plural(limit, "unit")} spent` },
      svg("rect", { x: 0, y: 0, width: 100, height: 4, class: "meter-all" }),
      svg("rect", { x: 0, y: 0, width: limit ? Math.min(100, (100 * spent) / limit) : 0, height: 4, class: "meter-spent" }),
    );
  }

  function changedSteps(doc) {
    const shown = doc.candidates[leadingCandidate(doc) ?? 0];
    const before = doc.candidates[0].prompts;
    const changed = doc.task.steps.filter((step) => shown.prompts[step] !== before[step]);
    if (!changed.length) return "none";
    const chips = changed.map((step) => el("a", { href: State.link("prompts", { step }), class: "chip" }, inline(step)));
    if (chips.length <= MOST_STEPS) return chips;
    const rest = chips.length - MOST_STEPS;
    return [chips.slice(0, MOST_STEPS), folded({ class: "more" }, `${number(rest)} more`, () => chips.slice(MOST_STEPS))];
  }

  function facts(doc) {
    const { spent, limit } = doc.budget;
    const seconds = Object.values(doc.seconds).reduce((sum, one) => sum + one, 0);
    const stop = doc.result?.stop_reason;
    return el(
      "dl",
      { class: "facts" },
      fact("Budget", `${number(spent)} / ${number(limit)} units`, budgetNote(doc)),
      fact("Cost", Object.keys(doc.usage).length ? dollars(doc.cost_usd) : NONE, Object.keys(doc.usage).length ? "all roles together" : "no call of an LM yet"),
      stateName(doc) === "not begun" ? fact("Time", NONE, `made ${moment(doc.started_at)}`) : fact("Time", duration(seconds), `began ${moment(doc.started_at)}`),
      fact("Turns", el("a", { href: State.link("turns") }, number(doc.turns.length)), stop ? `ended: ${stop.replaceAll("_", " ")}` : null),
      fact("Candidates", el("a", { href: State.link("candidates") }, number(doc.candidates.length)), plural(doc.runs.length, "evaluation")),
      fact("Prompts changed", changedSteps(doc), `of ${plural(doc.task.steps.length, "step")}`),
    );
  }

  function warnings(doc) {
    const found = doc.result?.warnings ?? [];
    if (!found.length) return null;
    return el(
      "section",
      { class: "notice", "aria-labelledby": "warnings-title" },
      el("h3", { id: "warnings-title" }, plural(found.length, "warning")),
      el("ul", {}, found.map((text) => el("li", {}, inline(text, "span", {})))),
    );
  }

  function returned(doc) {
    if (!doc.result) return null;
    return el("p", { class: "quiet" }, "Returned: ", inline(doc.result.returned_because, "span"));
  }

  function drawRuns(doc) {
    const columns = ["run", "split", "#score", "#± error", "#passed", "#examples", "#units spent", "candidate", "turn", "state"];
    const rows = doc.runs.map((run) => [
      run.run_id,
      [run.split, run.baseline && el("span", { class: "quiet" }, " baseline")],
      score(run.score),
      score(run.standard_error),
      number(run.passed_count),
      `${number(run.evaluated_count)} / ${number(run.planned_count)}`,
      number(run.spent),
      candidateLink(run.candidate),
      turnLink(run.turn),
      runState(doc, run),
    ]);
    redraw(runTable, table(columns, rows, unseen("All evaluations")));
  }

  function drawSpending(doc) {
    const names = { root: "root LM (the agent)", sub: "sub-LM", eval: "program under test" };
    const roles = Object.entries(doc.usage).map(([role, used]) => [
      names[role] ?? role,
      [number(used.calls), used.cached_calls > 0 && el("span", { class: "quiet" }, ` (${number(used.cached_calls)} cached)`)],
      number(used.prompt_tokens),
      number(used.completion_tokens),
      dollars(used.cost_usd),
    ]);
    const phases = Object.entries(doc.seconds).map(([phase, seconds]) => [phase.replaceAll("_", " "), duration(seconds)]);
    redraw(
      spending,
      el("h2", { id: "spending-title" }, "What it took"),
      el(
        "div",
        { class: "pair" },
        table(["", "#calls", "#tokens in", "#tokens out", "#cost"], roles, "LM calls by role"),
        table(["", "#"], phases, "Time by phase"),
      ),
    );
  }

  return {
    update(doc) {
      redraw(head, verdict(doc), Splits.cards(doc), returned(doc), facts(doc), warnings(doc));
      drawLegend(doc);
      chart.update(doc);
      drawRuns(doc);
      drawSpending(doc);
    },
  };
}
