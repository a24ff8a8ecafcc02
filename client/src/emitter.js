/** Listeners by the name of an event. An error of one does not keep the others from being called. */

import { refuse } from "./errors.js";
import { isFunction } from "./frames.js";

/**
 * @param {string[]} events  the names that exist
 */
export function createEmitter(events) {
  /** @type {Map<string, Set<{call: Function}>>} */
  const all = new Map(events.map((event) => [event, new Set()]));
  return {
    /**
     * @param {string} event
     * @param {Function} call
     * @returns {() => void} removes the listener
     */
    on(event, call) {
      const listeners = all.get(event);
      if (!listeners) refuse(`no event "${event}": use ${events.join(", ")}`);
      if (!isFunction(call)) refuse(`no function for "${event}"`);
      const listener = { call };
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },

    /**
     * @param {string} event
     * @param {...any} values
     */
    emit(event, ...values) {
      const listeners = /** @type {Set<{call: Function}>} */ (all.get(event));
      for (const listener of [...listeners]) {
        // An earlier listener may have removed this one.
        if (!listeners.has(listener)) continue;
        try {
          (0, listener.call)(...values);
        } catch (error) {
          (globalThis.reportError ?? console.error)(error);
        }
      }
    },
  };
}
