/* What it ran with: the task, the settings, what confined the kernel, the versions, and how to repeat it. */

function createSetup(container) {
  function terms(map) {
    const list = el("dl", { class: "terms" });
    for (const [name, value] of Object.entries(map)) {
      if (value === undefined) continue;
      const shown = value instanceof Node ? value : plainValue(value);
      list.append(el("div", { class: "term" }, el("dt", {}, inline(name)), el("dd", {}, shown)));
    }
    return list;
  }

  function plainValue(value) {
    if (value === null) return el("span", { class: "quiet" }, "none");
    if (typeof value === "object") return inline(JSON.stringify(value), "span", { class: "datum plain" });
    return inline(value, "span");
  }

  function part(id, title, nodes, className = null) {
    return el("section", { "aria-labelledby": id, class: className }, el("h2", { id }, title), nodes);
  }

  function task(doc) {
    const { splits } = doc.task;
    const sizes = SPLITS.filter((split) => splits[split]).map((split) => `${split} ${number(splits[split])}`);
    return terms({
      steps: el("span", {}, doc.task.steps.map((step) => el("a", { href: State.link("prompts", { step }), class: "chip" }, inline(step)))),
      metric: doc.task.metric,
      examples: sizes.join(", "),
      begun: moment(doc.started_at),
      ended: doc.finished_at ? moment(doc.finished_at) : stateText(doc),
      "run store": doc.store.path,
      "branched from": doc.task.branch ? el("span", {}, branchedFrom(doc)) : undefined,
    });
  }

  function versions(doc) {
    const known = Object.keys(doc.versions).length > 0;
    return known ? terms(doc.versions) : el("p", { class: "quiet" }, "They are recorded when the optimization ends.");
  }

  function guarantees(map, sign, kind) {
    const names = Object.entries(map);
    if (!names.length) return null;
    return el(
      "ul",
      { class: "guarantees plain-list" },
      names.map(([name, why]) => el("li", {}, el("span", { class: kind }, `${sign} ${name.replaceAll("_", " ")} `), inline(why, "span", { class: "datum quiet" }))),
    );
  }

  function confinement(doc) {
    const found = doc.confinement;
    if (!found) return el("p", { class: "quiet" }, "The kernel has not started yet.");
    const missing = Object.keys(found.missing).length;
    return [
      el("p", {}, inline(found.summary, "span")),
      el("h3", {}, `In force: ${plural(Object.keys(found.in_force).length, "guarantee")}`),
      guarantees(found.in_force, "✓", "outcome-fixed"),
      missing ? el("h3", {}, `Missing: ${plural(missing, "guarantee")}`) : null,
      guarantees(found.missing, "✕", "outcome-broken"),
    ];
  }

  return {
    update(doc) {
      redraw(
        container,
        part("task-title", "Task", task(doc)),
        part("versions-title", "Versions", versions(doc)),
        part("confinement-title", "What confined the agent's kernel", confinement(doc), "wide"),
        part("settings-title", "Settings", terms(doc.task.settings), "wide"),
        part("repeat-title", "How to repeat it", longText(doc.repeat.join("\n"), { className: "text code", label: "how to repeat it" }), "wide"),
      );
    },
  };
}
