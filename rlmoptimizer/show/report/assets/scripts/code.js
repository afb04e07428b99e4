/* Python code with its parts marked. Makes spans of text; what it does not know stays plain. */

const Code = (() => {
  const KEYWORDS = new Set(
    ("False None True and as assert async await break class continue def del elif else except finally for from global if " +
      "import in is lambda match nonlocal not or pass raise return try while with yield").split(" "),
  );
  const TOOLS = new Set(
    "evaluate_program run_data compare_runs race_prompts try_program update_prompt optimization_status llm_query llm_query_batched SUBMIT".split(
      " ",
    ),
  );
  // Texts of three quotes before those of one; a text that is not closed ends with the line, or with the code.
  const TOKEN =
    /(?<comment>#[^\n]*)|(?<text>[rbfuRBFU]{0,2}(?:"""(?:[^\\]|\\[^])*?(?:"""|$)|'''(?:[^\\]|\\[^])*?(?:'''|$)|"(?:[^"\\\n]|\\[^])*"?|'(?:[^'\\\n]|\\[^])*'?))|(?<number>\b(?:0[xob][\da-fA-F_]+|\d[\d_]*(?:\.[\d_]*)?(?:[eE][+-]?\d+)?j?)\b)|(?<name>[\p{L}_][\p{L}\p{N}_]*)/gu;

  function kindOf(groups, before) {
    if (groups.comment !== undefined) return "comment";
    if (groups.text !== undefined) return "string";
    if (groups.number !== undefined) return "number";
    if (TOOLS.has(groups.name)) return "tool";
    if (KEYWORDS.has(groups.name)) return "keyword";
    return /\b(?:def|class)\s+$/.test(before) ? "defined" : null;
  }

  function nodes(code) {
    const made = document.createDocumentFragment();
    let end = 0;
    for (const match of code.matchAll(TOKEN)) {
      const kind = kindOf(match.groups, code.slice(Math.max(0, match.index - 12), match.index));
      if (!kind) continue;
      made.append(visible(code.slice(end, match.index)), el("span", { class: `code-${kind}` }, visible(match[0])));
      end = match.index + match[0].length;
    }
    made.append(visible(code.slice(end)));
    return made;
  }

  /** A block of code; a part of a long one is marked on its own. */
  function block(code, label = "code") {
    return longText(code, { className: "text code", label, draw: nodes });
  }

  return { block };
})();
