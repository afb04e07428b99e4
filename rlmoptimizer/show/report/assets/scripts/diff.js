/* Two texts compared word by word, by jsdiff. Texts that would take it too long are compared line by line, or not. */

const WordDiff = (() => {
  const MOST_WORDS_CHARS = 400_000; // of both texts together
  const MOST_CHARS = 1_000_000;
  const MOST_MS = 700;

  /** [{ value, added, removed }] of jsdiff, or null: too long, or too different, to be compared. */
  function parts(before, after) {
    const size = before.length + after.length;
    const byWords = size <= MOST_WORDS_CHARS ? Diff.diffWordsWithSpace(before, after, { timeout: MOST_MS }) : undefined;
    if (byWords) return byWords;
    return (size <= MOST_CHARS ? Diff.diffLines(before, after, { timeout: MOST_MS }) : undefined) ?? null;
  }

  function nodes(found, shown) {
    return found.filter(shown).map((part) => {
      if (part.added) return el("ins", { class: "add" }, visible(part.value));
      if (part.removed) return el("del", { class: "cut" }, visible(part.value));
      return visible(part.value);
    });
  }

  function block(label, children) {
    return el("pre", { class: "text prompt", dir: "auto", tabindex: "0", role: "group", "aria-label": label }, children);
  }

  function counts(found) {
    const words = (kind) =>
      found.reduce((sum, part) => sum + (part[kind] ? (part.value.match(/[\p{L}\p{N}]+/gu)?.length ?? 0) : 0), 0);
    return `${plural(words("added"), "word")} added, ${plural(words("removed"), "word")} removed`;
  }

  function apart(before, after) {
    return el(
      "div",
      { class: "pair" },
      el("div", {}, el("h4", {}, "before"), longText(before, { label: "before" })),
      el("div", {}, el("h4", {}, "after"), longText(after, { label: "after" })),
    );
  }

  /** The difference as nodes; `sides`: both texts beside one another, else one text with both. */
  function node(before, after, { sides = false } = {}) {
    if (before === after) return longText(after, { className: "text prompt", label: "prompt" });
    const found = parts(before, after);
    if (!found) return el("div", {}, el("p", { class: "quiet" }, "Too long to be compared word by word."), apart(before, after));
    if (!sides) return block("difference", nodes(found, () => true));
    return el(
      "div",
      { class: "pair" },
      el("div", {}, el("h4", {}, "before"), block("before", nodes(found, (part) => !part.added))),
      el("div", {}, el("h4", {}, "after"), block("after", nodes(found, (part) => !part.removed))),
    );
  }

  function summary(before, after) {
    if (before === after) return "the same text";
    const found = parts(before, after);
    return found ? counts(found) : "too long to be compared word by word";
  }

  return { node, summary };
})();
