/* Text search over the examples: their rows at once, then all their details, chunk by chunk, while the page goes on. */

/** Whether a text stands anywhere in a value, whatever its case. `wanted` is in lower case. */
function holdsText(value, wanted) {
  if (typeof value === "string") return value.toLowerCase().includes(wanted);
  if (value === null || value === undefined) return false;
  if (typeof value !== "object") return String(value).includes(wanted);
  return Object.values(value).some((one) => holdsText(one, wanted));
}

/**
 * A search that is under way or done. `found` is a set of places in `examples.rows` that grows; `told(done, total)` is
 * called as it does, and once with `done === total`. `stop()` ends it.
 */
function searchExamples(doc, text, told) {
  const wanted = text.toLowerCase();
  const rows = doc.examples.rows;
  const size = doc.examples.chunk_size;
  const found = new Set();
  let stopped = false;
  rows.forEach((row, place) => {
    if ([row[ROW.id], row[ROW.source], row[ROW.head]].some((one) => holdsText(one, wanted))) found.add(place);
  });

  async function readAll() {
    for (let first = 0; first < rows.length; first += size) {
      if (stopped) return;
      const chunk = await Data.chunk(first / size, { keep: false });
      if (stopped) return;
      chunk.forEach((details, at) => {
        if (!found.has(first + at) && holdsText(details, wanted)) found.add(first + at);
      });
      told(Math.min(first + size, rows.length), rows.length);
      await breath();
    }
  }

  const done = readAll();
  return { found, done, stop: () => (stopped = true) };
}
