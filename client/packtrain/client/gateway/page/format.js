// Numbers for people. Pure, so that a test can call each of them.

const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20]];

/** Bytes: "1.5 GiB". */
export function bytes(count) {
  const [unit, size] = UNITS.find(([, size]) => count >= size) ?? UNITS.at(-1);
  const value = count / size;
  return `${value < 10 && unit !== "MiB" ? value.toFixed(1) : Math.round(value)} ${unit}`;
}

/** A duration in ms, in one unit: "80 ms", "2.5 s", "3 min". */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  const s = Math.max(0, ms) / 1000;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 48 * 3600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

/** A rate: "7.3", "184", "12,400". */
export function rate(perSecond) {
  return perSecond < 10 ? (Math.round(perSecond * 10) / 10).toString() : count(Math.round(perSecond));
}

/** A whole number with separators. */
export const count = (number) => number.toLocaleString("en-US");

/** A moment as a clock shows it here. */
export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** The same without seconds, for axes. */
export function minute(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
}

/** The beginning of a long id. */
export const short = (id) => id.slice(0, 8);
