/* The prompts of a step: all its versions, where each came from and what it did, and any two of them compared. */

/** The different texts of a step, in the order in which they came up; with the candidates that have each. */
function versionsOf(doc, step) {
  const versions = new Map();
  for (const candidate of doc.candidates) {
    const text = candidate.prompts[step];
    if (!versions.has(text)) versions.set(text, { text, number: versions.size, first: candidate, candidates: [] });
    versions.get(text).candidates.push(candidate);
  }
  return [...versions.values()];
}

function createPrompts(container) {
  const tools = el("div", { class: "toolbar" });
  const versionList = el("div", { class: "versions", role: "group", "aria-label": "Versions" });
  const compared = el("section", { class: "panel", "aria-labelledby": "compared-title" });
  replace(
    container,
    el(
      "section",
      { "aria-labelledby": "prompts-title" },
      el("h2", { id: "prompts-title" }, "Prompts"),
      tools,
      el("div", { class: "prompts-split" }, versionList, compared),
    ),
  );
  let drawn = null;

  function name(version) {
    return `v${version.number}`;
  }

  /** The version that the result has, or the best so far. */
  function shownVersion(doc, versions) {
    const shown = doc.candidates[leadingCandidate(doc) ?? 0];
    return versions.find((version) => version.candidates.includes(shown)) ?? versions[0];
  }

  /** Of the candidates with a version, the one whose scores stand for it: the result or best so far, else the best. */
  function scoredCandidate(doc, version) {
    const leading = version.candidates.find((one) => one.index === leadingCandidate(doc));
    const whole = (candidate) => {
      const found = scoreOn(candidate, doc.scored_split);
      return found && found.n === doc.task.splits[doc.scored_split] ? found.score : -1;
    };
    const count = (candidate) => scoreOn(candidate, "train")?.n ?? 0; // scores on a part of train cannot be compared
    return leading ?? [...version.candidates].sort((one, other) => whole(other) - whole(one) || count(other) - count(one))[0];
  }

  function effect(doc, version, step) {
    const candidate = scoredCandidate(doc, version);
    const found = ["val", "train"].map((split) => {
      const own = scoreOn(candidate, split);
      if (!own) return null;
      // Where the step is the parent's, the difference is that of other steps.
      const change = candidate.changed.includes(step) ? changeFrom(doc, candidate, doc.candidates[candidate.parent], split) : null;
      return el(
        "span",
        { class: "version-effect" },
        `${split} `,
        el("strong", {}, score(own.score)),
        changeNode(change),
        el("span", { class: "quiet" }, change ? ` on ${number(change.n)}` : ` n ${number(own.n)}`),
      );
    });
    if (!found.some(Boolean)) return el("span", { class: "quiet" }, "not evaluated");
    return [candidate === version.first ? null : [candidateLink(candidate.index), ": "], found];
  }

  function marks(doc, version) {
    const all = new Set(version.candidates.flatMap((candidate) => candidateMarks(doc, candidate)));
    return [...all].map((mark) => [" ", markTag(mark)]);
  }

  function versionRow(doc, step, version, from, to) {
    const current = version === to ? "true" : null;
    const known = version.candidates;
    return el(
      "div",
      { class: `version${version === to ? " current" : ""}${version === from ? " from" : ""}` },
      el(
        "button",
        {
          type: "button",
          class: "version-name",
          "data-key": `version-${version.number}`,
          "aria-current": current,
          onclick: () => State.set({ to: version.number, from: version.number === from.number ? null : from.number }, { push: true }),
        },
        el("strong", {}, name(version)),
        marks(doc, version),
        version === from && version !== to ? el("span", { class: "quiet" }, " compared with") : null,
      ),
      el(
        "p",
        { class: "version-facts" },
        version.first.parent === null ? "from the start" : [turnLink(version.first.turn), ", ", candidateLink(version.first.index)],
        known.length > 1 ? el("span", { class: "quiet" }, ` and ${plural(known.length - 1, "more candidate")}`) : null,
      ),
      el("p", { class: "version-facts" }, effect(doc, version, step)),
    );
  }

  function drawTools(doc, step, versions, from, to, show) {
    const options = versions.map((version) => [
      String(version.number),
      `${name(version)}${version.first.parent === null ? " (baseline)" : `, ${turnName(version.first.turn)}`}`,
    ]);
    const ways = [
      ["diff", "Difference"],
      ["sides", "Side by side"],
      ["text", "Text"],
    ];
    redraw(
      tools,
      choice("prompt-step", "Step", doc.task.steps.map((one) => [one, one]), step, (one) => State.set({ step: one, from: null, to: null }, { push: true })),
      choice("prompt-from", "From", options, String(from.number), (one) => State.set({ from: one, to: to.number })),
      choice("prompt-to", "To", options, String(to.number), (one) => State.set({ to: one, from: from.number })),
      switches("Show", ways, show, (one) => State.set({ show: one === "diff" ? null : one })),
    );
  }

  function drawCompared(step, from, to, show) {
    const title = show === "text" || from === to ? [name(to)] : [name(from), " → ", name(to)];
    redraw(
      compared,
      el("h2", { id: "compared-title" }, inline(step), " ", el("span", { class: "quiet" }, title)),
      el("p", { class: "quiet" }, show === "text" ? plural(to.text.length, "character") : WordDiff.summary(from.text, to.text)),
      show === "text" ? longText(to.text, { className: "text prompt", label: "prompt" }) : WordDiff.node(from.text, to.text, { sides: show === "sides" }),
    );
  }

  return {
    update(doc, params) {
      const step = doc.task.steps.includes(params.step) ? params.step : doc.task.steps[0];
      const versions = versionsOf(doc, step);
      const to = versions[Number(params.to ?? -1)] ?? shownVersion(doc, versions);
      const parent = to.first.parent === null ? null : doc.candidates[to.first.parent];
      const before = parent && versions.find((version) => version.candidates.includes(parent));
      const from = versions[Number(params.from ?? -1)] ?? (params.to === undefined ? versions[0] : (before ?? versions[0]));
      const show = ["sides", "text"].includes(params.show) ? params.show : "diff";
      const text = JSON.stringify([step, from.number, to.number, show, doc.candidates, doc.so_far?.best]);
      if (text === drawn) return;
      drawn = text;
      drawTools(doc, step, versions, from, to, show);
      redraw(versionList, versions.map((version) => versionRow(doc, step, version, from, to)));
      drawCompared(step, from, to, show);
      reveal(versionList, versionList.children[to.number]);
    },
  };
}
