/** What to do when a connection has ended: `bye`, else the table of close codes. */

import { FINAL, OTHERS, RECONNECTIONS } from "./close_codes.js";
import { isAtLeast } from "./frames.js";
import { APPLICATION, DAPHNE, LONGEST_SECONDS, UNAUTHORIZED } from "./limits.js";

/** @typedef {import("./connection.js").End} End */

/** @typedef {import("./close_codes.js").Bounds | null} Reaction  null: do not connect again */

const LOST = [1005, 1006];
const REFUSED = [UNAUTHORIZED, 4403];

/**
 * @param {End} end
 * @returns {number} the close code, without what daphne adds
 */
export const codeOf = ({ code, bye }) =>
  isAtLeast(bye?.code, 0) ? bye?.code : code > APPLICATION && code < 3016 ? code - DAPHNE : code;

/**
 * @param {End} end
 * @returns {Reaction}
 */
export function reaction(end) {
  const code = codeOf(end);
  const { again, after } = end.bye ?? {};
  const usual = RECONNECTIONS[code] ?? OTHERS;
  if (again === true) return areBounds(after) ? after : usual;
  const isFinal =
    again === false ||
    FINAL.includes(code) ||
    // Refused at once: there is no login. Later it means that there may be a new one.
    (code === UNAUTHORIZED && !end.isGreeted) ||
    (code >= APPLICATION && !RECONNECTIONS[code]);
  return isFinal ? null : usual;
}

/**
 * @param {any} value
 * @returns {value is [number, number]}
 */
const areBounds = (value) =>
  Array.isArray(value) &&
  isAtLeast(value[0], 0) &&
  isAtLeast(value[1], value[0]) &&
  value[1] <= LONGEST_SECONDS;

/**
 * @param {End} end
 * @returns {import("../types/client.js").Reason}
 */
export function reasonOf(end) {
  const code = codeOf(end);
  if (!end.isGreeted && REFUSED.includes(code)) return "refused";
  if (end.bye || !LOST.includes(code)) return "server";
  return end.isGreeted ? "lost" : "unreachable";
}
