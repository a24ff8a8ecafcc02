/** The public functions; client.d.ts describes them. */

import { environment } from "./environment.js";
import { createSocket } from "./socket.js";

export { RequestError } from "./errors.js";

/**
 * @param {import("../types/client.js").Provided<string | URL>} url
 * @param {import("../types/client.js").ConnectOptions} [options]
 * @returns {import("../types/client.js").Socket}
 */
export const connect = (url, options = {}) =>
  createSocket(url, options, environment(options.WebSocket));
