/** A timer that does not mistake a page that slept for a server that is silent. */

const LATE_MS = 2000;
const GRACE_MS = 5000;

/**
 * Call `expired` after `ms`. After a page has slept, its overdue timers run before the messages that
 * have arrived. A timer that is late by more than 2 s therefore waits 5 s more, once.
 *
 * @param {import("./environment.js").Environment} env
 * @param {number} ms
 * @param {() => void} expired
 * @param {() => void} [late]  called when the timer is late
 * @returns {() => void} cancels the timer
 */
export function deadline(env, ms, expired, late) {
  let due = env.nowMs() + ms;
  let cancel = env.timer(ms, function fire() {
    if (env.nowMs() - due <= LATE_MS) return expired();
    due = Infinity;
    cancel = env.timer(GRACE_MS, fire);
    late?.();
  });
  return () => cancel();
}
