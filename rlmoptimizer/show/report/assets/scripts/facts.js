/* What follows from the document: names, states, links, and which example was fixed. */

const PASSED = 100 - 1e-7; // a score of at least this is a pass
const SPLITS = ["train", "val", "test"];

/** A row of `examples.rows`. */
const ROW = { id: 0, source: 1, before: 2, after: 3, error: 4, head: 5 };

function passes(value) {
  return value !== null && value >= PASSED;
}

/** Of an example: what the new prompts made of it. One word for each state, and whether the filters show it. */
function outcomeOf(row) {
  const [before, after] = [row[ROW.before], row[ROW.after]];
  if (before !== null && after !== null) {
    if (!passes(before) && passes(after)) return "fixed";
    if (passes(before) && !passes(after)) return "broken";
    if (after > before) return "better";
    if (after < before) return "worse";
  }
  const last = after ?? before;
  return last === null ? "not run" : passes(last) ? "passed" : "failed";
}

const OUTCOME_SIGNS = { fixed: "▲", broken: "▼", better: "△", worse: "▽", passed: "✓", failed: "✕", "not run": "·" };

function outcomeMark(outcome) {
  return el("span", { class: `outcome outcome-${outcome.replace(" ", "-")}` }, `${OUTCOME_SIGNS[outcome]} ${outcome}`);
}

function isFailed(row) {
  const last = row[ROW.after] ?? row[ROW.before];
  return last !== null && !passes(last);
}

/** Where an example that the address names stands in `examples.rows` and in the grid; -1: nowhere. */
function placeOf(doc, id) {
  if (id === undefined) return -1;
  // An address cannot hold half of a surrogate pair.
  return doc.examples.rows.findIndex((row) => row[ROW.id] === id || row[ROW.id].toWellFormed?.() === id);
}

function candidateName(index) {
  return `C${index}`;
}

/** The candidate that the examples compare the unchanged program with: that of the result, else the best so far. */
function comparedWith(doc) {
  return doc.examples.compared_with ?? null;
}

function comparedName(doc) {
  return doc.result ? "result" : "best so far";
}

/** The index of the candidate that is given back, else of the best so far; null: there is none. */
function leadingCandidate(doc) {
  return doc.candidates.find((one) => one.is_result)?.index ?? doc.so_far?.best ?? null;
}

/** Short marks of what a candidate is. */
function candidateMarks(doc, candidate) {
  const marks = [];
  if (candidate.is_baseline) marks.push("baseline");
  if (candidate.is_result) marks.push("result");
  if (candidate.is_submitted && !candidate.is_result) marks.push("submitted");
  if (!doc.result && doc.so_far && doc.so_far.best === candidate.index && !candidate.is_baseline) marks.push("best");
  return marks;
}

function markTag(mark) {
  return el("span", { class: `tag tag-${mark.replaceAll(" ", "-")}` }, mark);
}

function candidateLink(index, text = candidateName(index), attributes = {}) {
  return el("a", { href: State.link("candidates", { candidate: index }), ...attributes }, text);
}

/** A run that no process works on any more is cut. */
function runState(doc, run) {
  return run.state === "running" && doc.state === "interrupted" ? "cut" : run.state;
}

function runLink(doc, id) {
  const run = doc.runs.find((one) => one.run_id === id);
  const what = run ? ` ${run.split} ${run.score === null ? runState(doc, run) : score(run.score)}` : "";
  return run
    ? el("a", { href: State.link("candidates", { candidate: run.candidate }) }, id, el("span", { class: "quiet" }, what))
    : id;
}

/** Of a run or a candidate. Null: it came after the agent's work; 0: before its first turn. */
function turnName(turn) {
  if (turn === null) return "after the agent's work";
  return turn ? `turn ${turn}` : "before the first turn";
}

function turnLink(turn) {
  return turn ? el("a", { href: State.link("turns", { turn }) }, turnName(turn)) : turnName(turn);
}

/** What a candidate has on a split, or null. */
function scoreOn(candidate, split) {
  const found = candidate.scores[split];
  return found && found.score !== null ? found : null;
}

/** By how much a candidate is above another on a split, { points, n }: on the examples that both were run on. Or null. */
function changeFrom(doc, candidate, other, split) {
  const [own, before] = [scoreOn(candidate, split), scoreOn(other, split)];
  if (!own || !before) return null;
  if (split !== "train") return { points: own.score - before.score, n: Math.min(own.n, before.n) };
  const [cells, otherCells] = [doc.grid.cells[candidate.index], doc.grid.cells[other.index]];
  const known = new Map(otherCells.places.map((place, at) => [place, otherCells.scores[at]]));
  let [sum, n] = [0, 0];
  cells.places.forEach((place, at) => {
    if (!known.has(place)) return;
    sum += cells.scores[at] - known.get(place);
    n += 1;
  });
  return n ? { points: sum / n, n } : null;
}

function changeNode(change, note = "") {
  if (!change) return null;
  return el("span", { class: `change-${Math.sign(Math.round(change.points * 10))}` }, ` ${points(change.points)}${note}`);
}

/** The figures of the head: of the result, or of the best so far. */
function comparedSplits(doc) {
  return (doc.result ?? doc.so_far)?.splits ?? {};
}

/** The state in a word or two. */
function stateName(doc) {
  return doc.state === "interrupted" && doc.task.branch?.begun === false ? "not begun" : doc.state;
}

/** The same as a sentence. */
function stateText(doc) {
  if (stateName(doc) === "not begun") {
    return doc.task.branch.begins_by_itself
      ? "It begins as soon as the optimization that it was branched from has ended."
      : "Call compile(..., resume=True) with the same setup to begin it.";
  }
  return {
    running: "It goes on.",
    paused: "It is paused: the agent's next turn waits.",
    finished: "It has ended.",
    interrupted: "No process works on it. compile(..., resume=True) goes on.",
  }[doc.state];
}

/** Of what it is a branch, as nodes: "optimization 1, run r3". */
function branchedFrom(doc) {
  const { store, run_id: run } = doc.task.branch;
  const number_ = /^runs-(\d{4,9})\.sqlite$/.exec(store)?.[1];
  const name = number_ === undefined ? inline(store) : `optimization ${Number(number_)}`;
  const linked = number_ !== undefined && Data.mode === "live";
  return [linked ? el("a", { href: `../${Number(number_)}/` }, name) : name, ", run ", inline(run)];
}
