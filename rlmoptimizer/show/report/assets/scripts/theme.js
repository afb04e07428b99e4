/* Light, dark or as the system has it. Kept by the browser where it may, not in the address. */

const Theme = (() => {
  const KEY = "rlmoptimizer-theme";
  const listeners = [];

  function kept() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser may forbid it for a file
    }
  }

  function apply(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    listeners.forEach((listener) => listener());
  }

  function start() {
    const select = document.getElementById("theme");
    select.value = ["light", "dark"].includes(kept()) ? kept() : "system";
    apply(select.value);
    select.addEventListener("change", () => {
      try {
        localStorage.setItem(KEY, select.value);
      } catch {
        // it holds until the page is closed
      }
      apply(select.value);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(select.value));
  }

  /** A colour of the style, as a canvas takes it. */
  function colour(name) {
    const probe = document.getElementById("state");
    const before = probe.style.color;
    probe.style.color = `var(--${name})`;
    const found = getComputedStyle(probe).color;
    probe.style.color = before;
    return found;
  }

  return { start, colour, onChange: (listener) => listeners.push(listener) };
})();
