/* What a person asks of the optimization from the page: each dialog says what will happen before it is asked.

   Steering.send(action, given)  a promise of the server's answer; it fails with words for the person
   Steering.note(done), .stop(done), .branch(doc, status, done)  dialogs; `done` gets the answer */

const Steering = (() => {
  const MOST_NOTE_CHARS = 8000;
  let draft = ""; // of a note that was not sent

  async function send(action, given = {}) {
    let response;
    try {
      response = await fetch(action, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(given),
      });
    } catch {
      throw new Error("The page's server does not answer.");
    }
    const answer = await response.json().catch(() => ({}));
    if (answer.error) throw new Error(answer.error);
    if (!response.ok) throw new Error(`The server answered ${response.status}.`);
    return answer;
  }

  /** A dialog around `parts`. `given` makes the parameters of the action when it is confirmed. */
  function ask({ action, title, label, parts, given = () => ({}), done }) {
    const wrong = el("p", { class: "dialog-error", role: "alert" });
    const confirm = el("button", { type: "submit", class: "main" }, label);
    const cancel = el("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = el(
      "form",
      { novalidate: true },
      el("h2", { id: "dialog-title" }, title),
      parts,
      wrong,
      el("div", { class: "dialog-buttons" }, cancel, confirm),
    );
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "dialog-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (confirm.disabled) return;
      confirm.disabled = true;
      wrong.textContent = "";
      try {
        const answer = await send(action, given());
        dialog.close();
        done(answer);
      } catch (error) {
        wrong.textContent = sentence(error.message);
      } finally {
        confirm.disabled = false;
      }
    });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal(); // the browser gives the focus back to the button when it closes
  }

  function sentence(text) {
    const line = shownLine(text, 600);
    return line.charAt(0).toUpperCase() + line.slice(1) + (/[.!?]$/.test(line) ? "" : ".");
  }

  function textField(id, label, rows) {
    const area = el("textarea", { id, rows, maxlength: MOST_NOTE_CHARS, spellcheck: "true", dir: "auto" });
    return { area, node: el("label", { class: "field", for: id }, el("span", {}, label), area) };
  }

  function note(done) {
    const { area, node } = textField("note-text", "Your words to the agent", 6);
    area.value = draft;
    area.addEventListener("input", () => {
      draft = area.value;
    });
    ask({
      action: "note",
      title: "Write a note to the agent",
      label: "Send",
      parts: [
        el("p", {}, "The agent reads it before its next turn, marked as yours. It stands in the report too."),
        node,
      ],
      given: () => ({ text: area.value }),
      done: (answer) => {
        draft = "";
        done(answer);
      },
    });
    area.focus();
  }

  function stop(done) {
    ask({
      action: "stop",
      title: "Stop and take the best?",
      label: "Stop",
      parts: [
        el("p", {}, "The agent ends its work now, also in the middle of a turn. This cannot be undone."),
        el("p", {}, "The best prompts so far are chosen, checked and returned by compile, as when the agent ends by itself."),
      ],
      done,
    });
  }

  function branch(doc, status, done) {
    const runs = choosable(doc);
    const choose = el("select", { id: "branch-run" }, runs.map((run) => el("option", { value: run.run_id }, runLabel(doc, run))));
    choose.value = suggested(doc, runs)?.run_id ?? "";
    const units = el("input", { id: "branch-units", type: "number", min: 1, step: 1, value: doc.budget.limit, disabled: true });
    const left = radio("left", `What is left: ${plural(doc.budget.left, "unit")}`, doc.budget.left > 0);
    const fresh = radio("new", "A new budget, in units:", doc.budget.left <= 0);
    const follow = () => {
      units.disabled = !fresh.input.checked;
    };
    for (const one of [left, fresh]) one.input.addEventListener("change", follow);
    follow();
    const { area, node } = textField("branch-note", "A note to its agent, if you like", 3);
    ask({
      action: "branch",
      title: "Branch from a run",
      label: "Branch",
      parts: [
        el("p", {}, effect(status)),
        el("label", { class: "field", for: "branch-run" }, el("span", {}, "Begin with the prompts of"), choose),
        el("fieldset", { class: "field" }, el("legend", {}, "Budget"), left.node, el("div", { class: "budget-new" }, fresh.node, units)),
        node,
      ],
      given: () => ({
        run_id: choose.value,
        units: fresh.input.checked ? Number(units.value) : null,
        note: area.value.trim() ? area.value : null,
      }),
      done,
    });
    units.setAttribute("aria-label", "New budget in units");
    choose.focus();
  }

  function radio(value, text, checked) {
    const input = el("input", { type: "radio", name: "branch-budget", value, checked });
    return { input, node: el("label", { class: "option" }, input, " ", text) };
  }

  function effect(status) {
    const same = "A new optimization begins in the same directory, with the prompts of this run as its current ones.";
    if (status.state === "finished") return `${same} It waits for compile(..., resume=True) with the same setup.`;
    if (status.state === "interrupted") {
      return `${same} It waits for compile(..., resume=True) with the same setup; this one is not resumed any more.`;
    }
    return `${same} The one that runs makes way for it, without its final check and test; the same compile call goes on.`;
  }

  /** Runs whose prompts are known, newest first; those of the unchanged prompts, which begin all anew, last. */
  function choosable(doc) {
    const runs = doc.runs.filter((run) => run.candidate !== null && run.state !== "running").reverse();
    return [...runs.filter((run) => run.candidate), ...runs.filter((run) => !run.candidate)];
  }

  /** A run of the candidate that the page shows, else of the best one, else the newest with changed prompts. */
  function suggested(doc, runs) {
    const { view, params } = State.read();
    const seen = view === "candidates" && runs.find((run) => String(run.candidate) === params.candidate);
    if (seen) return seen;
    const best = leadingCandidate(doc) || null; // the unchanged prompts throw away what the agent has found
    return runs.find((run) => run.candidate === best && run.split === doc.scored_split) ?? runs[0];
  }

  function runLabel(doc, run) {
    const prompts = run.candidate === 0 ? "unchanged prompts" : `C${run.candidate}`;
    return `${run.run_id}: ${run.split}, ${plural(run.planned_count, "example")}, score ${score(run.score)}, ${prompts}`;
  }

  return { send, note, stop, branch, sentence };
})();
