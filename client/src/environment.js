/** The functions of the browser that the client calls. Tests replace them. */

import { refuse } from "./errors.js";
import { LONGEST_MS } from "./limits.js";

/**
 * @typedef {object} Environment
 * @property {() => number} nowMs  milliseconds, as `Date.now`
 * @property {(ms: number, callback: () => void) => () => void} timer  returns what cancels it
 * @property {() => number} random  at least 0 and less than 1
 * @property {import("../types/client.js").WebSocketClass} WebSocket
 * @property {EventTarget | undefined} window  has the events of the page; absent in Node
 * @property {(EventTarget & {visibilityState: string}) | undefined} document  absent in workers
 * @property {string | undefined} base  the address that relative URLs start from
 */

/**
 * @param {import("../types/client.js").WebSocketClass | undefined} given
 * @returns {Environment}
 */
export function environment(given) {
  const { document, location } = globalThis;
  const WebSocket = given ?? globalThis.WebSocket;
  if (!WebSocket) refuse("no WebSocket here: pass the option WebSocket");
  return {
    nowMs: Date.now,
    timer: (ms, callback) => {
      const id = setTimeout(callback, Math.min(ms, LONGEST_MS));
      return () => clearTimeout(id);
    },
    random: Math.random,
    WebSocket,
    window: location && globalThis,
    document,
    base: location?.href,
  };
}
