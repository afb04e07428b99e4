/* The data of the page: the document and the examples' details by chunks, from the page itself or from its server.

   Data.mode             "report" (the page holds it all) or "live" (its server gives it, and tells when it has changed)
   Data.start()          a promise: the document is there
   Data.document         the newest one
   Data.chunk(index)     a promise of the details of `examples.chunk_size` examples
   Data.onChange(fn)     called with each newer document
   Data.refresh()        look for a newer one; live only. Never two at once: what is asked for meanwhile comes after it */

/** What is in the page: gzipped JSON as base64, each part in a script element that no browser runs. */
const embedded = (() => {
  const parsed = new Promise((resolve) => {
    if (document.readyState !== "loading") resolve();
    else document.addEventListener("DOMContentLoaded", resolve, { once: true });
  });

  function bytes(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  async function read(id) {
    let holder = document.getElementById(id);
    if (!holder) {
      await parsed; // the chunks come after this script
      holder = document.getElementById(id);
    }
    if (!holder) throw new Error(`the page has no part ${id}; the file may be cut`);
    const stream = new Blob([bytes(holder.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  return {
    document: () => read("document"),
    chunk: (index) => read(`examples-${index}`),
  };
})();

/** What a server on this machine gives; its addresses are relative to that of the page. */
const served = (() => {
  let tag = null; // of the newest document

  /** Null: there is none newer than the last that was read. */
  async function newest() {
    const response = await fetch("document", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (response.status === 304) return null;
    const found = await json(response);
    tag = response.headers.get("ETag");
    return found;
  }

  async function json(response) {
    if (response.ok) return response.json();
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ?? `the server answered ${response.status}`);
  }

  return {
    document: newest,
    chunk: async (index) => json(await fetch(`examples/${index}`, { cache: "no-store" })),
  };
})();

const Data = (() => {
  const KEPT_CHUNKS = 6;
  const mode = document.documentElement.dataset.mode;
  const source = mode === "live" ? served : embedded;
  const changeListeners = [];
  const chunks = new Map(); // index -> promise, the one used last at the end
  let reading = null; // the promise of the document that is under way
  let again = false; // something changed while it was

  const data = { mode, document: null, start, chunk, onChange, refresh };

  async function start() {
    data.document = await source.document();
  }

  function refresh() {
    if (mode !== "live") return Promise.resolve();
    if (reading) {
      again = true;
      return reading;
    }
    reading = source
      .document()
      .then((newer) => {
        if (!newer) return;
        data.document = newer;
        chunks.clear();
        changeListeners.forEach((listener) => listener(newer));
      })
      .catch(() => {}) // live.js tells that the connection is lost, and refreshes when it is back
      .finally(() => {
        reading = null;
        if (again) {
          again = false;
          refresh();
        }
      });
    return reading;
  }

  /** `keep` false: it is not kept, for those who read all. */
  function chunk(index, { keep = true } = {}) {
    const known = chunks.get(index);
    if (!keep) return known ?? source.chunk(index);
    const found = known ?? source.chunk(index);
    chunks.delete(index);
    chunks.set(index, found);
    found.catch(() => chunks.delete(index)); // to be asked for again
    if (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
    return found;
  }

  function onChange(listener) {
    changeListeners.push(listener);
  }

  return data;
})();
