/** The delay before the next attempt: random, so that many clients do not come at the same time. */

const CAP_SECONDS = 30;

/**
 * @param {number} random  at least 0 and less than 1
 * @param {number} failures  the attempts that have failed before, one after the other
 * @param {readonly [number, number]} after  the bounds of the first delay, in seconds
 * @returns {number} milliseconds
 */
export function delayMs(random, failures, [lowest, highest] = [0, 1]) {
  const widest = Math.max(highest, Math.min(CAP_SECONDS, 2 ** failures));
  return Math.round(1000 * (lowest + random * (widest - lowest)));
}
