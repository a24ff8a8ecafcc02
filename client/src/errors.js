/** The error of requests, and the errors that the client makes itself. */

import { isAtLeast, isObject, textOf } from "./frames.js";

/** @typedef {import("../types/client.js").ErrorInfo} ErrorInfo */

export class RequestError extends Error {
  /** @param {ErrorInfo} info */
  constructor({ code, message, temporary, after }) {
    super(message);
    this.name = "RequestError";
    this.code = code;
    this.temporary = temporary;
    if (after !== undefined) this.after = after;
  }
}

/**
 * @param {string} message
 * @returns {never}
 */
export function refuse(message) {
  throw new TypeError(message);
}

/**
 * @param {string} code
 * @param {string} message
 * @param {boolean} [temporary]
 * @returns {ErrorInfo}
 */
export const failure = (code, message, temporary = false) => ({ code, message, temporary });

/**
 * An error object of the server, with every key of its type.
 *
 * @param {unknown} received
 * @returns {ErrorInfo}
 */
export function errorInfo(received) {
  const { code, message, temporary, after } = isObject(received) ? received : {};
  /** @type {ErrorInfo} */
  const info = failure(textOf(code) || "internal", textOf(message), temporary === true);
  if (isAtLeast(after, 0)) info.after = after;
  return info;
}
