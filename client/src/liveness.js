/** Finds out that a connection is dead although nothing has closed it. */

import { numberOr } from "./frames.js";
import { DEFAULT_PING_SECONDS, MARGIN_MS, REARM_MS, WAIT_MS } from "./limits.js";
import { deadline } from "./timers.js";

/** @typedef {ReturnType<typeof watchLiveness>} Liveness */

/**
 * @param {import("./environment.js").Environment} env
 * @param {unknown} pingSeconds  the interval of the server's pings
 * @param {() => void} ping  sends a ping
 * @param {() => void} dead  called once, if no frame has come after a ping
 */
export function watchLiveness(env, pingSeconds, ping, dead) {
  const mostMs = 1000 * numberOr(pingSeconds, DEFAULT_PING_SECONDS) + MARGIN_MS;
  let heardAt = env.nowMs();
  let armedAt = heardAt;
  /** @type {() => void} */
  let stopTimer;
  /** @type {(() => void) | undefined} */
  let stopWaiting;

  /** @param {number} ms */
  const arm = (ms) => {
    stopTimer?.();
    armedAt = env.nowMs();
    stopTimer = env.timer(ms, () => {
      const quietMs = env.nowMs() - heardAt;
      // It is negative if the clock was set back.
      if (quietMs >= 0 && quietMs < mostMs) arm(mostMs - quietMs);
      else check();
    });
  };

  /** Send a ping, and wait for any frame. */
  const check = () => {
    ping();
    stopWaiting ??= deadline(env, WAIT_MS, dead, ping);
  };

  arm(mostMs);
  return {
    check,

    /** A frame has come. */
    heard() {
      heardAt = env.nowMs();
      stopWaiting?.();
      stopWaiting = undefined;
      // A browser delays timers of hidden pages by up to a minute if they were started by a timer.
      // One that a message has started is in time. A new one for every message would cost too much.
      if (Math.abs(heardAt - armedAt) > REARM_MS) arm(mostMs);
    },

    stop() {
      stopTimer();
      stopWaiting?.();
    },
  };
}
