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

/**
 * A number of the server that is at least 0.1, or else a number of the client.
 *
 * @param {unknown} value
 * @param {number} other
 */
export const numberOr = (value, other) => (isAtLeast(value, 0.1) ? value : other);

/**
 * @param {unknown} value
 * @returns {value is string}
 */
export const isText = (value) => typeof value === "string";

/**
 * @param {unknown} value
 * @returns {value is (...values: any[]) => any}
 */
export const isFunction = (value) => typeof value === "function";

/** @param {unknown} value */
export const textOf = (value) => (isText(value) ? value : "");

/**
 * @param {unknown} value
 * @returns {value is string[]}
 */
export const areNames = (value) =>
  Array.isArray(value) && value.every(isText);

/**
 * Decode a frame of the server.
 *
 * @param {unknown} received  a text, or an ArrayBuffer
 * @returns {Frame | null}
 */
export function decode(received) {
  try {
    if (isText(received)) return object(received);
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
