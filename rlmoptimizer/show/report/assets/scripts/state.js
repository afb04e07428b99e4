/* What the page shows, kept in its address: "#/examples?filter=fixed&open=e7". So a link leads back to it. */

const State = (() => {
  const listeners = [];
  let last = null; // the address that the listeners were told

  function read() {
    // Another hash than ours, of a place within the page, is the first view.
    const [, view = "", query = ""] = /^#\/([a-z]*)\??(.*)$/s.exec(location.hash) ?? [];
    return { view, params: Object.fromEntries(new URLSearchParams(query)) };
  }

  /** The address of a view. Parameters that are null, false or "" are left out. */
  function link(view, params = {}) {
    const kept = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false);
    const query = new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString();
    return `#/${view}${query ? `?${query}` : ""}`;
  }

  /** Change parameters of the view that is shown. `push`: the browser's Back undoes it. */
  function set(changes, { push = false } = {}) {
    const { view, params } = read();
    go(link(view, { ...params, ...changes }), push);
  }

  function go(address, push = true) {
    if (address !== location.hash) history[push ? "pushState" : "replaceState"](null, "", address);
    tell();
  }

  function tell() {
    if (location.hash === last) return;
    last = location.hash;
    for (const listener of listeners) listener(read());
  }

  function onChange(listener) {
    listeners.push(listener);
  }

  window.addEventListener("hashchange", tell);
  window.addEventListener("popstate", tell);
  return { read, link, set, go, onChange };
})();
