/* The candidates as a tree by parent, drawn as version control draws its history: one row each, lines to the left. */

/** Which lane each candidate stands in, and which lines pass its row. The way to `goal`, an index or null, is strong. */
function layOutLineage(candidates, goal) {
  const waiting = candidates.map(() => 0); // children that have not come yet
  for (const { parent } of candidates) if (parent !== null) waiting[parent]++;
  const next = new Map(); // of the ancestors of `goal`: the child that leads to it
  for (let one = candidates[goal]; one && one.parent !== null; one = candidates[one.parent]) next.set(one.parent, one.index);
  const onPath = (index) => next.has(index) || index === goal;
  const owners = []; // lane -> the candidate whose children go on in it
  const laneOf = [];
  const freeLane = () => {
    const free = owners.indexOf(null);
    return free === -1 ? owners.length : free;
  };
  return candidates.map(({ index, parent }) => {
    if (parent !== null) waiting[parent]--;
    const parentLane = parent === null ? null : laneOf[parent];
    const lane = parent !== null && !waiting[parent] ? parentLane : freeLane();
    const passing = owners
      .map((owner, at) => ({ owner, lane: at }))
      .filter((line) => line.owner !== null && line.lane !== lane)
      .map((line) => ({ lane: line.lane, strong: next.get(line.owner) > index }));
    owners[lane] = waiting[index] ? index : null;
    laneOf[index] = lane;
    return { lane, parentLane, passing, goesOn: waiting[index] > 0, strong: onPath(index), strongOn: next.has(index), lanes: owners.length };
  });
}

/** The tree has `node`, `update(doc, selected)` and `focus()`; `open(index)` is called by a click and by Enter. */
function lineageTree(open) {
  const HEIGHT = 44;
  const tree = el("div", { class: "lineage", id: "lineage", role: "tree", "aria-label": "Candidates by parent" });
  let candidates = [];
  let drawn = null; // what the tree was drawn from
  let shown = null; // the selected candidate that was scrolled to

  function lines(place, spacing, width) {
    const x = (lane) => 9 + lane * spacing;
    const middle = HEIGHT / 2;
    const picture = svg("svg", { class: "lanes", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    const line = (d, strong) => picture.append(svg("path", { d, class: strong ? "lane strong" : "lane" }));
    for (const { lane, strong } of place.passing) line(`M${x(lane)} 0V${HEIGHT}`, strong);
    const [own, from] = [x(place.lane), place.parentLane === null ? null : x(place.parentLane)];
    if (from !== null) line(`M${from} 0C${from} ${middle} ${own} 0 ${own} ${middle}`, place.strong);
    if (place.goesOn) line(`M${own} ${middle}V${HEIGHT}`, place.strongOn);
    picture.append(svg("circle", { cx: own, cy: middle, r: 5, class: place.strong ? "node strong" : "node" }));
    return picture;
  }

  function bar(doc, candidate, parent, split) {
    const found = scoreOn(candidate, split);
    if (!found) return el("span", { class: "lineage-score quiet" }, el("span", { class: "quiet" }, `${split} `), NONE);
    return el(
      "span",
      { class: "lineage-score" },
      el("span", { class: "quiet" }, `${split} `),
      el("strong", {}, score(found.score)),
      parent && changeNode(changeFrom(doc, candidate, parent, split)),
      svg(
        "svg",
        { class: `score-bar bar-${split}`, viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { width: 100, height: 4, class: "meter-all" }),
        svg("rect", { width: found.score, height: 4, class: "bar-value" }),
      ),
    );
  }

  function row(doc, candidate, place, spacing, width, levels) {
    const parent = candidate.parent === null ? null : candidates[candidate.parent];
    const siblings = candidates.filter((one) => one.parent === candidate.parent);
    const item = el(
      "div",
      {
        class: "lineage-row",
        role: "treeitem",
        id: `lineage-${candidate.index}`,
        tabindex: "-1",
        "aria-level": levels[candidate.index],
        "aria-setsize": siblings.length,
        "aria-posinset": siblings.indexOf(candidate) + 1,
        onclick: () => open(candidate.index),
      },
      lines(place, spacing, width),
      el(
        "span",
        { class: "lineage-name" },
        el("strong", {}, candidateName(candidate.index)),
        el("span", { class: "quiet" }, candidate.is_baseline ? "" : candidate.turn ? ` turn ${candidate.turn}` : ""),
      ),
      el(
        "span",
        { class: "lineage-changed" },
        candidateMarks(doc, candidate).map((mark) => [markTag(mark), " "]),
        candidate.is_baseline ? el("span", { class: "quiet" }, "the unchanged prompts") : candidate.changed.map((step, at) => [at ? ", " : "", inline(step)]),
        unseen(parent ? `, from ${candidateName(parent.index)}` : ""),
      ),
      ["train", "val"].filter((split) => doc.task.splits[split]).map((split) => bar(doc, candidate, parent, split)),
    );
    item.style.height = `${HEIGHT}px`;
    return item;
  }

  function draw(doc) {
    const goal = leadingCandidate(doc);
    const places = layOutLineage(candidates, goal);
    const most = Math.max(...places.map((place) => place.lanes));
    const spacing = Math.min(16, (innerWidth < 700 ? 44 : 110) / Math.max(1, most - 1));
    const width = Math.ceil(18 + (most - 1) * spacing);
    const levels = [];
    for (const { index, parent } of candidates) levels[index] = parent === null ? 1 : levels[parent] + 1;
    redraw(tree, candidates.map((candidate, at) => row(doc, candidate, places[at], spacing, width, levels)));
  }

  function move(event) {
    const at = [...tree.children].indexOf(document.activeElement);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const { parent, index } = candidates[at];
    const child = candidates.find((one) => one.parent === index);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: candidates.length - 1, ArrowLeft: parent ?? at, ArrowRight: child?.index ?? at };
    if (event.key in to) focusRow(Math.max(0, Math.min(candidates.length - 1, to[event.key])));
    else if (event.key === "Enter" || event.key === " ") open(index);
    else return;
    event.preventDefault();
  }

  function focusRow(at) {
    tree.children[at]?.focus();
    stop(at);
  }

  /** The one row at which the Tab key stops. */
  function stop(at) {
    [...tree.children].forEach((item, place) => item.setAttribute("tabindex", place === at ? "0" : "-1"));
  }

  tree.addEventListener("keydown", move);

  return {
    node: tree,
    update(doc, selected) {
      const text = JSON.stringify([doc.candidates, doc.so_far?.best]);
      candidates = doc.candidates;
      if (text !== drawn) draw(doc);
      drawn = text;
      [...tree.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === selected)));
      stop(selected);
      if (selected !== shown) reveal(tree, tree.children[selected]);
      shown = selected;
    },
  };
}
