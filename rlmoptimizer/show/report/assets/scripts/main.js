/* The page: its views, of which one is shown at a time, and the head above them. A view is made when it is first shown. */

const VIEWS = [
  // [name in the address, title, maker]. A maker gets the element to fill and gives { update(doc, params) }.
  ["", "Overview", createOverview],
  ["candidates", "Candidates", createCandidates],
  ["prompts", "Prompts", createPrompts],
  ["examples", "Examples", createExamples],
  ["turns", "Turns", createTurns],
  ["setup", "Setup", createSetup],
];

const Page = (() => {
  const made = new Map(); // name -> { section, view }
  const SCROLLED = ".rows, .grid-scroller, .lineage, .versions, .details, .panel, .all-runs";
  const places = new Map(); // of boxes that are not on the screen: how far they were scrolled
  let current = null;

  function counts(doc) {
    return { candidates: doc.candidates.length, examples: doc.examples.count, turns: doc.turns.length };
  }

  function drawHead(doc) {
    const title = shownLine(doc.title, 120);
    const name = VIEWS.find(([one]) => one === current)[1];
    document.title = `${title} – ${name}`;
    document.getElementById("title").textContent = title;
    const pill = document.getElementById("state");
    const state = stateName(doc);
    if (pill.textContent && pill.textContent !== state) announce(`The optimization is now ${state}.`);
    pill.textContent = state;
    pill.className = `pill state-${state.replace(" ", "-")}`;
    document.getElementById("branch").hidden = !doc.task.branch;
    const found = counts(doc);
    const nav = document.getElementById("views");
    redraw(
      nav,
      VIEWS.map(([one, text]) =>
        el(
          "a",
          { href: State.link(one), "data-key": one, "aria-current": one === current ? "page" : null },
          text,
          found[one] === undefined ? null : el("span", { class: "count" }, ` ${number(found[one])}`),
        ),
      ),
    );
    const link = nav.querySelector("[aria-current]");
    nav.scrollLeft = Math.max(0, link.offsetLeft - nav.clientWidth / 2 + link.offsetWidth / 2); // in sight on a phone
  }

  function show({ view, params }) {
    const [name, title, create] = VIEWS.find(([one]) => one === view) ?? VIEWS[0];
    const isNew = current !== name;
    if (isNew && current !== null) keepPlaces(made.get(current).section);
    current = name;
    if (!made.has(name)) {
      const section = el("div", { class: `view view-${name || "overview"}` });
      document.getElementById("main").append(section);
      made.set(name, { section, view: create(section) });
    }
    for (const [one, { section }] of made) section.hidden = one !== name;
    drawHead(Data.document);
    if (isNew) {
      window.scrollTo(0, 0);
      announce(`${title} shown`);
    }
    if (isNew) takePlaces(made.get(name).section);
    made.get(name).view.update(Data.document, params);
  }

  /** A box that is hidden forgets how far it was scrolled. */
  function keepPlaces(section) {
    for (const box of section.querySelectorAll(SCROLLED)) places.set(box, [box.scrollLeft, box.scrollTop]);
  }

  function takePlaces(section) {
    for (const box of section.querySelectorAll(SCROLLED)) if (places.has(box)) box.scrollTo(...places.get(box));
  }

  function update(doc) {
    drawHead(doc);
    made.get(current).view.update(doc, State.read().params);
    document.dispatchEvent(new CustomEvent("drawn")); // a newer document is on the page
  }

  function fail(error) {
    const text = `This page cannot be shown: ${error.message}`;
    replace(document.getElementById("main"), el("p", { class: "notice", role: "alert" }, text));
  }

  /** The first document. A live page waits for it: the optimization may be about to begin. */
  async function begin() {
    for (;;) {
      try {
        await Data.start();
        return;
      } catch (error) {
        if (Data.mode !== "live") throw error;
        fail(error);
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    }
  }

  async function start() {
    Theme.start();
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address is the state
      document.getElementById("main").focus();
    });
    try {
      await begin();
      document.getElementById("main").replaceChildren();
      show(State.read());
    } catch (error) {
      fail(error);
      throw error;
    }
    State.onChange(show);
    Data.onChange(update);
    if (Data.mode === "live") Live.start();
  }

  return { start };
})();

Page.start();
