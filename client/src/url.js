/** The address of a websocket. */

import { refuse } from "./errors.js";

/**
 * @param {string | URL} url
 * @param {string | undefined} base  the address of the page
 * @returns {string}
 * @throws TypeError if it is no address, or not one of a websocket
 */
export function addressOf(url, base) {
  const address = new URL(url, base);
  address.protocol = address.protocol.replace("http", "ws");
  if (!/^wss?:$/.test(address.protocol)) refuse(`${url} is no websocket`);
  address.hash = "";
  return address.href;
}
