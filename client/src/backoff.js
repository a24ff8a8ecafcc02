/** The delay before the next attempt: random, so that many clients do not come at the same time. */

const CAP_SECONDS = 30;

/**
 * @param {number} random  at least 0 and less than 1
 * @param {number} steps  the attempts of the series before this one: 0 for the delay that `after` bounds
 * @param {readonly [number, number]} after  the bounds of the first delay, in seconds
 * @param {number} cap  the longest delay of later steps in seconds, unless `after` allows a longer one
 * @returns {number} milliseconds
 */
export function delayMs(random, steps, [lowest, highest] = [0, 1], cap = CAP_SECONDS) {
  const widest = Math.max(highest, steps && Math.min(cap, 2 ** steps));
  return Math.round(1000 * (lowest + random * (widest - lowest)));
}
