/** Made by scripts/close_codes.py from django_sockets/connection/close_codes.py: do not edit. */

/** @typedef {readonly [number, number]} Bounds  of a delay, in seconds */

/** @type {Readonly<Record<number, Bounds>>} */
export const RECONNECTIONS = {
  1001: [0, 1],
  1005: [0, 1],
  1006: [0, 1],
  1011: [1, 5],
  1012: [0, 5],
  1013: [5, 10],
  4401: [0, 1],
  4408: [0, 5],
  4429: [10, 60],
  4503: [10, 60],
};

/** After these codes, and after others from 3000 on, a client does not reconnect. */
export const FINAL = [1000, 1007, 1008, 1009];

/** @type {Bounds} */
export const OTHERS = [1, 5];
