/* The bar of the live page: whether it is connected, the buttons, and what came of them. */

const Live = (() => {
  const SAID_MS = 8000; // what was said goes away by itself; errors stay
  const own = Number(location.pathname.split("/").at(-2)); // the number of this optimization in its directory
  let status = null; // as the server told it last
  let revision = null; // of the document that was asked for last
  let connection = "connected";
  let buttons = null;
  let line = null;
  let said = null;
  let timer = 0;

  function start() {
    const bar = document.getElementById("live");
    buttons = {
      pause: button("pause", () => (status.pausing ? now("unpause") : now("pause"))),
      note: button("note", () => Steering.note(tell)),
      stop: button("stop", () => Steering.stop(tell)),
      branch: button("branch", () => Steering.branch(Data.document, status, tell)),
    };
    const text = { note: "Note…", stop: "Stop…", branch: "Branch…" };
    for (const [name, words] of Object.entries(text)) buttons[name].textContent = words;
    line = el("div", { class: "live-line", id: "live-line", role: "status", "aria-live": "polite" });
    said = el("div", { class: "live-said", hidden: true }, el("p", { role: "status", "aria-live": "polite" }), dismissal());
    replace(bar, el("div", { class: "live-buttons", role: "group", "aria-label": "Steer the optimization" }, Object.values(buttons)));
    bar.hidden = false;
    bar.parentElement.after(line);
    bar.closest("header").append(said);
    draw();
    Data.onChange(draw);
    Connection.start(take, (state) => {
      if (state === connection) return;
      connection = state;
      draw();
    });
  }

  function take(newest) {
    status = newest;
    draw();
    if (revision === newest.revision) return;
    revision = newest.revision;
    Data.refresh();
  }

  function button(name, act) {
    return el("button", {
      type: "button",
      class: "small",
      id: `live-${name}`,
      onclick: () => {
        const reason = whyNot(name);
        if (reason) say(reason, true);
        else act();
      },
    });
  }

  async function now(action) {
    try {
      tell(await Steering.send(action));
    } catch (error) {
      say(Steering.sentence(error.message), true);
    }
  }

  function tell(answer) {
    say(answer.said);
    take(answer.status);
  }

  /** Why a button does nothing now; null: it does. */
  function whyNot(name) {
    if (connection !== "connected" || !status) return "The page is not connected to its server.";
    if (status.refusal) return Steering.sentence(status.refusal);
    if (!status.state) return "The store of this optimization cannot be read now.";
    const works = status.state === "running" || status.state === "paused";
    if (name === "branch") return works && status.branching ? "A branch is about to begin already." : null;
    if (status.state === "finished") return "This optimization has ended. Branch it to go on from one of its runs.";
    if (status.agent_ended) return "The agent has ended its work; only its result is being measured.";
    if (status.branching) return "This optimization makes way for a branch.";
    if (status.stopping) return "This optimization is about to stop.";
    return null;
  }

  function draw() {
    const pausing = Boolean(status && status.pausing);
    buttons.pause.textContent = !pausing ? "Pause" : status.state === "interrupted" ? "Cancel the pause" : "Go on"; // who is dead does not go on
    for (const [name, one] of Object.entries(buttons)) {
      const reason = whyNot(name);
      // Not `disabled`: who has the focus there keeps it, and may ask why.
      if (reason) one.setAttribute("aria-disabled", "true");
      else one.removeAttribute("aria-disabled");
      one.title = reason ?? effectOf(name, pausing);
    }
    const facts = [...connectionFacts(), ...statusFacts()];
    const shown = facts.map((fact) => (typeof fact === "string" ? fact : fact.textContent)).join("\n");
    if (line.dataset.shown !== shown) {
      line.dataset.shown = shown; // what stays the same is not read out again, and keeps its focus
      replace(line, facts.map((fact) => el("p", {}, fact)));
    }
    line.hidden = !facts.length;
  }

  function effectOf(name, pausing) {
    return {
      pause: pausing ? "Let the agent go on" : "Let the agent wait before its next turn; evaluations under way finish",
      note: "Write to the agent: it reads your words before its next turn",
      stop: "End the agent's work and take the best prompts so far",
      branch: "Begin a new optimization with the prompts of one of these runs",
    }[name];
  }

  function connectionFacts() {
    if (connection === "lost") return ["The connection to the page's server is lost. It is tried again."];
    if (connection === "gone") {
      return ["The page's server does not answer. If it has ended, start it again with rlmoptimizer view, and open the new address."];
    }
    return [];
  }

  function statusFacts() {
    if (!status) return [];
    const facts = [];
    if (status.problem) facts.push(Steering.sentence(status.problem));
    if (status.refusal) facts.push(Steering.sentence(status.refusal));
    const works = !status.agent_ended && (status.state === "running" || status.state === "paused");
    if (works && status.branching) facts.push("It makes way for a branch.");
    else if (works && status.stopping) facts.push("It is about to stop and to take the best.");
    else if (works && status.state === "running" && status.pausing) facts.push("A pause is asked for: the agent waits before its next turn.");
    else if (status.state === "interrupted" && status.pausing) facts.push("A pause is asked for: when it is resumed, the agent waits before its first turn.");
    else if (status.state === "paused" && !status.pausing) facts.push("The agent is about to go on.");
    if (stateName(Data.document) === "not begun") facts.push(`This branch has not begun. ${stateText(Data.document)}`);
    const notes = Data.document.asked.notes.length;
    if (notes) {
      const wait = `${plural(notes, "note")} ${notes === 1 ? "waits" : "wait"} for the agent's next turn. `;
      facts.push(el("span", {}, wait, el("a", { href: State.link("turns", { turn: Data.document.turns.at(-1)?.number }) }, "Read")));
    }
    if (status.newest > own) {
      facts.push(el("span", {}, `There is a newer optimization in this directory, number ${status.newest}. `, el("a", { href: `../${status.newest}/` }, "Follow it")));
    }
    return facts;
  }

  function say(text, isError = false) {
    clearTimeout(timer);
    said.querySelector("p").textContent = text;
    said.classList.toggle("is-error", isError);
    said.hidden = false;
    if (!isError) timer = setTimeout(hush, SAID_MS);
  }

  function hush() {
    said.hidden = true;
  }

  function dismissal() {
    return el("button", { type: "button", class: "small", "aria-label": "Dismiss", onclick: hush }, "×");
  }

  return { start };
})();
