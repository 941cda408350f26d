/** Numbers as people read them. */

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });

export function count(value) {
  return whole.format(value);
}

export function rate(value) {
  return value < 10 ? short.format(value) : whole.format(value);
}

export function percent(share) {
  return `${share < 0.1 ? tenths.format(share * 100) : whole.format(share * 100)}%`;
}

export function duration(seconds) {
  if (seconds < 0.001) return `${short.format(seconds * 1e6)} µs`;
  if (seconds < 1) return `${short.format(seconds * 1e3)} ms`;
  return `${short.format(seconds)} s`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString();
}

export function plural(number, singular) {
  return `${count(number)} ${singular}${number === 1 ? "" : "s"}`;
}
