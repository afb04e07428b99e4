/* One example with all that is known of it: inputs, both predictions side by side, feedback, every traced step. */

/** `names` are those of the two sides, `details` is an entry of `Data.chunk`. */
function exampleNode(details, row, names) {
  const sides = [
    [names[0], details.before],
    [names[1], details.after],
  ].filter(([, side]) => side);

  function part(title, ...nodes) {
    return el("section", { class: "example-part" }, el("h4", {}, title), nodes);
  }

  function verdict(side) {
    const [sign, kind] = side.score === null ? ["·", "not-run"] : side.passed ? ["✓", "fixed"] : ["✕", "broken"];
    const more = [duration(side.seconds), side.run_id ? `run ${side.run_id}` : null].filter(Boolean).join(", ");
    return el(
      "p",
      { class: "side-score" },
      el("strong", { class: `outcome-${kind}` }, side.score === null ? "no verdict" : `${sign} ${score(side.score)}`),
      side.scores?.length > 1 ? el("span", { class: "quiet" }, ` of ${side.scores.map(score).join(", ")}`) : null,
      el("span", { class: "quiet" }, ` ${more}`),
    );
  }

  function objectives(side) {
    const found = Object.entries(side.objectives ?? {});
    if (!found.length) return null;
    return el("p", { class: "quiet" }, found.map(([name, value], at) => [at ? ", " : "", inline(name), ` ${value}`]));
  }

  function errorNode(title, text) {
    return el("div", { class: "event event-death" }, el("p", { class: "event-title" }, title), longText(text, { className: "text reasoning", label: title }));
  }

  function prediction([name, side]) {
    return el(
      "div",
      { class: "side" },
      el("h4", {}, name),
      verdict(side),
      objectives(side),
      side.error ? errorNode(`Error: ${side.error_kind}`, side.error) : null,
      side.predicted === null && side.error ? null : fieldsNode(side.predicted, `${name}, predicted`),
      side.feedback === null ? null : el("div", {}, el("h4", {}, "Feedback of the metric"), valueNode(side.feedback, `${name}, feedback`)),
    );
  }

  function step(one, name) {
    const failed = one.error !== undefined && one.error !== null;
    const title = [
      inline(one.step_name, "bdi", { class: "datum step-name" }),
      failed ? el("span", { class: "outcome-broken" }, " ✕ failed") : null,
      one.truncated ? el("span", { class: "tag" }, "cut at the token limit") : null,
    ];
    return folded({ class: "step" }, title, () => [
      el("h4", {}, "Inputs"),
      fieldsNode(one.inputs, `${name}, inputs of ${shownLine(one.step_name, 60)}`),
      el("h4", {}, "Outputs"),
      fieldsNode(one.outputs, `${name}, outputs of ${shownLine(one.step_name, 60)}`),
      failed ? errorNode("Error", one.error) : null,
      one.feedback ? [el("h4", {}, "Feedback on this step"), valueNode(one.feedback)] : null,
      one.completion ? [el("h4", {}, "What the LM wrote"), valueNode(one.completion)] : null,
      one.first_completion ? [el("h4", {}, "What it wrote before it was asked again"), valueNode(one.first_completion)] : null,
    ]);
  }

  function steps([name, side]) {
    if (!side.steps.length) return el("div", { class: "side" }, el("h4", {}, name), el("p", { class: "quiet" }, "no step was traced"));
    const list = side.steps.map((one) => step(one, name));
    const all = (open) => list.forEach((one) => (one.open = open));
    const button = el("button", { type: "button", class: "small", "aria-label": `Open or fold all steps of ${name}` }, "Open all");
    button.addEventListener("click", () => all(!list.every((one) => one.open)));
    return el("div", { class: "side" }, el("h4", { class: "side-title" }, `${name}, ${plural(list.length, "step")}`, button), list);
  }

  return el(
    "div",
    { class: "example" },
    el("div", { class: "pair" }, part("Inputs", fieldsNode(details.inputs, "inputs")), part("Expected", fieldsNode(details.expected, "expected"))),
    sides.length
      ? [
          el("section", { class: "example-part" }, el("h3", {}, "Predicted"), el("div", { class: "pair" }, sides.map(prediction))),
          el("section", { class: "example-part" }, el("h3", {}, "Traced steps"), el("div", { class: "pair" }, sides.map(steps))),
        ]
      : el("p", { class: "quiet" }, "Neither program was run on it."),
  );
}

/** The names of both sides. */
function sideNames(doc) {
  const after = comparedWith(doc);
  return [`baseline ${candidateName(0)}`, after === null ? "" : `${comparedName(doc)} ${candidateName(after)}`];
}

/** A promise of the example at a place of `examples.rows`, drawn. */
async function exampleAt(doc, place) {
  const size = doc.examples.chunk_size;
  const details = (await Data.chunk(Math.floor(place / size)))[place % size];
  return exampleNode(details, doc.examples.rows[place], sideNames(doc));
}
