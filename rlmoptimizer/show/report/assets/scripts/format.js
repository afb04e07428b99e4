/* Numbers, times and plurals as people read them. Scores are 0 to 100, times Unix seconds, durations seconds. */

const NONE = "–";
const GROUPED = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function number(value) {
  return value === null || value === undefined ? NONE : GROUPED.format(value);
}

function compact(value) {
  return value === null || value === undefined ? NONE : value < 10000 ? GROUPED.format(value) : COMPACT.format(value);
}

/** With one digit after the point, as Python writes it: what it wrote stands on the page beside what is written here. */
function tenths(value) {
  // Of two that are as near, toFixed takes the greater, Python the even one. Only 0.25 and 0.75 lie so, and 0.8 is both.
  const size = Math.abs(value);
  return (Math.sign(value) * (size % 1 === 0.25 ? size - 0.05 : size)).toFixed(1);
}

/** 83.333 as "83.3", 100 as "100". */
function score(value) {
  if (value === null || value === undefined) return NONE;
  const whole = Math.round(value);
  return Math.abs(value - whole) < 1e-7 ? String(whole) : tenths(value);
}

/** A difference in points, with its sign. */
function points(value) {
  if (value === null || value === undefined) return NONE;
  const text = tenths(Math.abs(value));
  return text === "0.0" ? "±0.0" : (value > 0 ? "+" : "−") + text;
}

function dollars(value) {
  if (value === null || value === undefined) return "not known";
  if (value === 0) return "$0";
  return value >= 1 ? `$${value.toFixed(2)}` : `$${value.toPrecision(2)}`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

function moment(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  return new Date(seconds * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}
