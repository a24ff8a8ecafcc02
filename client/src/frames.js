/** Bytes and text from and to frames. Frames that break the protocol are null. */

/** @typedef {Record<string, any>} Frame */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * @param {unknown} value
 * @returns {value is Frame}
 */
export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * @param {unknown} value
 * @param {number} least
 * @returns {value is number}
 */
export const isAtLeast = (value, least) => typeof value === "number" && value >= least;

/** @param {unknown} value */
export const textOf = (value) => (typeof value === "string" ? value : "");

/**
 * @param {unknown} value
 * @returns {value is string[]}
 */
export const areNames = (value) =>
  Array.isArray(value) && value.every((name) => typeof name === "string");

/**
 * Decode a frame of the server.
 *
 * @param {unknown} received  a text, or an ArrayBuffer
 * @returns {Frame | null}
 */
export function decode(received) {
  try {
    if (typeof received === "string") return object(received);
    if (!(received instanceof ArrayBuffer)) return null;
    const end = 2 + new DataView(received).getUint16(0);
    const header = object(decoder.decode(new Uint8Array(received, 2, end - 2)));
    return header && { ...header, data: new Uint8Array(received, end) };
  } catch {
    return null;
  }
}

/** @param {string} text */
function object(text) {
  const value = JSON.parse(text);
  return isObject(value) ? value : null;
}

/**
 * The number of bytes of a text in UTF-8.
 *
 * @param {string} text
 */
export const byteLength = (text) => encoder.encode(text).length;
