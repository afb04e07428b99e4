/* The agent's turns: what it thought, ran and saw; deaths of its kernel and notes of people where they fell. */

function createTurns(container) {
  const heading = el("h2", { id: "turns-title" }, "The agent's turns");
  const tools = el("div", { class: "toolbar" });
  const list = el("div", { class: "turns" });
  replace(container, el("section", { "aria-labelledby": "turns-title" }, heading, tools, list));
  const drawn = new Map(); // turn number -> { element, text }: only what has changed is drawn again
  let told = null; // the turn that the address named last

  function event(kind, title, text) {
    return el("div", { class: `event event-${kind}` }, el("p", { class: "event-title" }, title), text ? longText(text, { className: "text reasoning", label: title }) : null);
  }

  function noteNode(note) {
    return event("note", "Note of a person, given before this turn", note.text);
  }

  function waitingNoteNode(text) {
    return event("note", "Note of a person, which waits for the agent's next turn", text);
  }

  function deathNode(death) {
    return event("death", "The kernel died", death.reason);
  }

  function pauseNode(pause) {
    return event("pause", `Paused by a person before this turn for ${duration(pause.seconds)}`, "");
  }

  function side(doc, turn) {
    return el(
      "div",
      { class: "turn-side" },
      el("h3", {}, el("a", { href: State.link("turns", { turn: turn.number }) }, `Turn ${turn.number}`)),
      turn.seconds === null ? null : el("p", { class: "quiet" }, `${duration(turn.seconds)} in all`),
      turn.output?.startsWith("[Error] ") ? el("p", { class: "outcome-broken" }, "✕ error") : null, // as DSPy tells it to the agent
      el("p", { class: "quiet" }, moment(turn.at)),
      turn.prompts_set.length
        ? el("p", {}, "set ", turn.prompts_set.map((step) => el("a", { href: State.link("prompts", { step }), class: "chip" }, inline(step))))
        : null,
    );
  }

  function output(doc, turn) {
    if (turn.output === null) {
      return el("p", { class: "quiet" }, doc.state === "running" ? "Its code is running." : "No output: the turn was cut.");
    }
    if (!turn.output) return el("p", { class: "quiet" }, "No output.");
    const lines = turn.output.split("\n").length;
    const open = lines <= 14 && turn.output.length < 1500;
    return folded({ open, class: "output-fold" }, `Output, ${plural(lines, "line")}`, () =>
      longText(turn.output, { className: "text output", label: `output of turn ${turn.number}` }),
    );
  }

  function body(doc, turn) {
    return el(
      "div",
      { class: "turn-body" },
      doc.pauses.filter((pause) => pause.before_turn === turn.number && pause.seconds !== null).map(pauseNode),
      turn.notes.map(noteNode),
      turn.reasoning ? longText(turn.reasoning, { className: "text reasoning", label: `reasoning of turn ${turn.number}` }) : null,
      turn.code
        ? folded({ open: true, class: "code-fold" }, `Code, ${plural(turn.code.split("\n").length, "line")}`, () =>
            Code.block(turn.code, `code of turn ${turn.number}`),
          )
        : null,
      turn.deaths.map(deathNode),
      output(doc, turn),
      turn.runs.length ? el("ul", { class: "turn-runs" }, turn.runs.map((id) => el("li", {}, runLink(doc, id)))) : null,
    );
  }

  function foldAll(open) {
    for (const one of list.querySelectorAll("details")) one.open = open;
  }

  function drawTools(doc) {
    if (!doc.turns.length) return replace(tools, el("p", { class: "quiet" }, "The agent has not finished a turn yet."));
    const newest = doc.turns.at(-1).number;
    return redraw(
      tools,
      el("button", { type: "button", class: "small", id: "fold-all", onclick: () => foldAll(false) }, "Fold all"),
      el("button", { type: "button", class: "small", id: "unfold-all", onclick: () => foldAll(true) }, "Unfold all"),
      // The address may name that turn already, while the reader has gone elsewhere.
      newest > 1 && el("a", { href: State.link("turns", { turn: newest }), id: "newest-turn", onclick: () => scrollTo(newest) }, `Newest: turn ${newest}`),
    );
  }

  function scrollTo(turn) {
    const element = drawn.get(turn)?.element;
    if (!element) return;
    element.style.scrollMarginTop = `${document.querySelector(".bar").offsetHeight + 8}px`; // it covers the top
    element.scrollIntoView({ block: "start" });
  }

  /** What is still to come to the agent: notes that no turn has read yet, and a pause. */
  function waiting(doc) {
    const next = (doc.turns.at(-1)?.number ?? 0) + 1;
    return [
      doc.notes.filter((note) => note.before_turn >= next).map(noteNode),
      doc.asked.notes.map(waitingNoteNode),
      doc.state === "paused" ? event("pause", "Paused by a person: the next turn waits", "") : null,
      doc.asked.pausing && doc.state !== "paused" ? event("pause", "A pause is asked for: the agent waits before its next turn", "") : null,
    ].flat().filter(Boolean);
  }

  function drawTurn(doc, turn) {
    const text = JSON.stringify([turn, turn.output === null && doc.state, turn.runs.map((id) => doc.runs.find((run) => run.run_id === id)?.score)]);
    const known = drawn.get(turn.number);
    if (known?.text === text) return;
    const element = el("article", { class: "turn", id: `turn-${turn.number}`, "aria-label": `Turn ${turn.number}` }, side(doc, turn), body(doc, turn));
    if (known) known.element.replaceWith(element);
    else list.insertBefore(element, list.querySelector(".waiting"));
    drawn.set(turn.number, { element, text });
  }

  return {
    update(doc, params) {
      drawTools(doc);
      list.querySelector(".waiting")?.remove();
      for (const turn of doc.turns) drawTurn(doc, turn);
      const coming = waiting(doc);
      if (coming.length) list.append(el("div", { class: "waiting" }, coming));
      const wanted = params.turn ?? null;
      for (const [number_, { element }] of drawn) element.classList.toggle("current", String(number_) === wanted);
      if (wanted !== null && wanted !== told) scrollTo(Number(wanted));
      told = wanted;
    },
  };
}
