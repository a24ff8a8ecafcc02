/** What to do when a connection has ended: `bye`, else the table of close codes. */

import { AFTER_HELLO, OTHERS, REACTIONS } from "./close_codes.js";

/** @typedef {import("./connection.js").End} End */

/** @typedef {import("./close_codes.js").Reaction} Reaction  null: do not connect again */

const LONGEST_SECONDS = 3600;
/** daphne adds this to the codes 1001 to 1015. */
const DAPHNE = 2000;
const LOST_CODES = [1005, 1006];
const REFUSED_CODES = [4401, 4403];

/**
 * @param {End} end
 * @returns {number} without what daphne adds
 */
export const codeOf = ({ code, bye }) =>
  typeof bye?.code === "number" ? bye.code : code > 3000 && code < 3016 ? code - DAPHNE : code;

/**
 * @param {End} end
 * @returns {Reaction}
 */
export function reaction(end) {
  const code = codeOf(end);
  const known = (end.hello && AFTER_HELLO[code]) || REACTIONS[code];
  const usual = known === undefined ? (code < 3000 ? OTHERS : null) : known;
  if (typeof end.bye?.again !== "boolean") return usual;
  if (!end.bye.again) return null;
  return bounds(end.bye.after) ?? usual ?? OTHERS;
}

/**
 * @param {unknown} after
 * @returns {Reaction}
 */
function bounds(after) {
  if (!Array.isArray(after)) return null;
  const [lowest, highest] = after;
  const isValid = lowest >= 0 && highest >= lowest && highest <= LONGEST_SECONDS;
  return isValid ? [lowest, highest] : null;
}

/**
 * @param {End} end
 * @returns {import("../types/client.js").Reason}
 */
export function reasonOf(end) {
  const code = codeOf(end);
  if (!end.hello && REFUSED_CODES.includes(code)) return "refused";
  if (end.bye || !LOST_CODES.includes(code)) return "server";
  return end.hello ? "lost" : "unreachable";
}

