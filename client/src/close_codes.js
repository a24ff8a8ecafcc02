/** Made by scripts/close_codes.py from django_sockets/connection/close_codes.py: do not edit. */

/** @typedef {readonly [number, number] | null} Reaction  the bounds of the delay in seconds */

/** @type {Record<number, Reaction>} */
export const REACTIONS = {
  1000: null,
  1001: [0, 1],
  1005: [0, 1],
  1006: [0, 1],
  1007: null,
  1008: null,
  1009: null,
  1011: [1, 5],
  1012: [0, 5],
  1013: [5, 10],
  4401: null,
  4408: [0, 5],
  4429: [10, 60],
  4503: [10, 60],
};

/** @type {Record<number, Reaction>} */
export const AFTER_HELLO = {
  4401: [0, 1],
};

/** @type {Reaction} */
export const OTHERS = [1, 5];
