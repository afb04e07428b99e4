/* The candidates: the tree, the grid of their scores on each example, and one of them with its prompts and runs. */

function createCandidates(container) {
  const open = (changes) => State.set(changes, { push: true });
  const tree = lineageTree((index) => open({ candidate: index }));
  const grid = scoreGrid((candidate, place) => {
    const id = Data.document.grid.example_ids[place];
    open({ candidate, example: id });
    announce(`${candidateName(candidate)} and example ${shownLine(id, 60)} are shown`);
  });
  const panel = el("section", { class: "panel candidate-panel", "aria-labelledby": "candidate-title" });
  const gridTools = el("div", { class: "toolbar" });
  const example = el("section", { class: "panel", "aria-labelledby": "grid-example-title", hidden: true });
  replace(
    container,
    el(
      "div",
      { class: "candidates-top" },
      el("section", { "aria-labelledby": "lineage-title" }, el("h2", { id: "lineage-title" }, "Candidates by parent"), tree.node),
      panel,
    ),
    el(
      "section",
      { "aria-labelledby": "grid-title" },
      el("h2", { id: "grid-title" }, "Scores on each example of train"),
      el("p", { class: "quiet" }, "A row a candidate, a column an example. A cell is filled as far as its score reaches; empty: not measured."),
      gridTools,
      grid.node,
    ),
    example,
  );
  let panelText = null; // what the panel was drawn from
  let exampleText = null;

  function scoreTable(doc, candidate) {
    const parent = candidate.parent === null ? null : doc.candidates[candidate.parent];
    const change = (other, split) => {
      const found = other && other !== candidate && changeFrom(doc, candidate, other, split);
      return found ? [changeNode(found), el("span", { class: "quiet" }, ` on ${number(found.n)}`)] : NONE;
    };
    const rows = SPLITS.filter((split) => scoreOn(candidate, split)).map((split) => {
      const own = scoreOn(candidate, split);
      const above = [doc.candidates[0], parent].map((other) => change(other, split));
      return [split, el("strong", {}, score(own.score)), number(own.n), number(own.passed), ...above];
    });
    if (!rows.length) return el("p", { class: "quiet" }, "It was never evaluated.");
    return table(["split", "#score", "#examples", "#passed", "#to baseline", "#to parent"], rows);
  }

  function runList(doc, candidate) {
    const runs = doc.runs.filter((run) => run.candidate === candidate.index);
    if (!runs.length) return null;
    const list = folded({ class: "runs" }, plural(runs.length, "evaluation"), () =>
      el(
        "ul",
        { class: "plain-list" },
        runs.map((run) =>
          el(
            "li",
            { "data-run": run.run_id },
            `${run.run_id} ${run.split}: ${score(run.score)} on ${number(run.evaluated_count)} of ${plural(run.planned_count, "example")}, `,
            turnLink(run.turn),
            run.state === "finished" ? "" : `, ${runState(doc, run)}`,
          ),
        ),
      ),
    );
    return list;
  }

  function promptPart(doc, candidate, step) {
    const parent = candidate.parent === null ? null : doc.candidates[candidate.parent];
    const text = candidate.prompts[step];
    const changed = parent && parent.prompts[step] !== text;
    const title = [inline(step), el("span", { class: "quiet" }, changed ? ` ${WordDiff.summary(parent.prompts[step], text)}` : candidate.is_baseline ? "" : " as the parent's")];
    return folded({ open: Boolean(changed), class: "prompt-fold" }, title, () => WordDiff.node(changed ? parent.prompts[step] : text, text));
  }

  function drawPanel(doc, candidate) {
    const parent = candidate.parent;
    const from = parent === null ? null : [", from ", candidateLink(parent)];
    redraw(
      panel,
      el(
        "h2",
        { id: "candidate-title" },
        candidateName(candidate.index),
        candidateMarks(doc, candidate).map((mark) => [" ", markTag(mark)]),
      ),
      el("p", { class: "quiet" }, candidate.is_baseline ? "the unchanged prompts" : ["came up in ", turnLink(candidate.turn), from]),
      scoreTable(doc, candidate),
      runList(doc, candidate),
      el("h3", {}, parent === null ? "Prompts" : `Prompts, compared with ${candidateName(parent)}`),
      doc.task.steps.map((step) => promptPart(doc, candidate, step)),
    );
  }

  async function drawExample(doc, place, candidate) {
    const row = doc.examples.rows[place];
    const id = row[ROW.id];
    const at = doc.grid.cells[candidate.index]?.places.indexOf(place) ?? -1;
    const own = at < 0 ? "was not run on it" : `scored ${score(doc.grid.cells[candidate.index].scores[at])} on it`;
    const body = el("div", {}, el("p", { class: "quiet" }, "Reading …"));
    redraw(
      example,
      el(
        "div",
        { class: "example-head" },
        el("h2", { id: "grid-example-title" }, "Example ", inline(id)),
        el("p", {}, `${candidateName(candidate.index)} ${own}. `, el("a", { href: State.link("examples", { open: id }) }, "Show it among all examples")),
        el("button", { type: "button", class: "small", onclick: () => State.set({ example: null }, { push: true }) }, "Close"),
      ),
      body,
    );
    try {
      replace(body, await exampleAt(doc, place));
    } catch (error) {
      replace(body, el("p", { class: "notice", role: "alert" }, `The example could not be read: ${error.message}`));
    }
  }

  return {
    update(doc, params) {
      const wanted = Number(params.candidate ?? comparedWith(doc) ?? 0);
      const candidate = doc.candidates[wanted] ?? doc.candidates[0];
      tree.update(doc, candidate.index);
      grid.update(doc, { ...params, candidate: candidate.index });
      if (!gridTools.childElementCount) {
        const orders = [
          ["given", "as given"],
          ["mean", "hardest first"],
          ["result", "lowest result first"],
          ["change", "most broken first"],
        ];
        replace(gridTools, choice("grid-order", "Order of the examples", orders, params.order ?? "given", (order) => State.set({ order: order === "given" ? null : order })));
      }
      gridTools.querySelector("select").value = params.order ?? "given";
      const text = JSON.stringify([candidate, doc.runs.filter((run) => run.candidate === candidate.index), doc.so_far?.best]);
      if (text !== panelText) drawPanel(doc, candidate);
      panelText = text;
      const place = placeOf(doc, params.example);
      example.hidden = place < 0;
      const shown = place < 0 ? null : JSON.stringify([place, candidate.index, doc.examples.rows[place], doc.examples.compared_with]);
      if (shown !== null && shown !== exampleText) drawExample(doc, place, candidate);
      exampleText = shown;
    },
  };
}
