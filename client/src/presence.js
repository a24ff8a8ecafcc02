/** Who is present on one channel: the last list of the server, and the changes since. */

import { isObject } from "./frames.js";

/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {[string, any[]]} Member  a key, and an info for each of its entries */

/**
 * @param {unknown} value
 * @returns {Member[]}
 */
const membersOf = (value) =>
  isObject(value) ? Object.entries(value).filter(([, infos]) => Array.isArray(infos)) : [];

/**
 * @param {Iterable<Member>} members
 * @returns {Member[]}
 */
const without = (members) => [...members].map(([key]) => [key, []]);

/**
 * Infos as text, in an order that does not depend on the server process.
 *
 * @param {any[]} [infos]
 */
const comparable = (infos = []) => infos.map((info) => JSON.stringify(info)).sort().join();

/** @param {(event: string, ...values: any[]) => void} emit */
export function createPresence(emit) {
  /** @type {Map<string, any[]>} */
  const members = new Map();
  /** The parts of a list that have come. @type {Map<string, any[]>} */
  const parts = new Map();
  let isKnown = false;

  return {
    /** A copy of the list. */
    list: () => new Map(members),

    /** The connection has ended: the rest of a list does not come any more. */
    forgetParts: () => parts.clear(),

    /** The subscription has ended and is not made again. */
    clear() {
      members.clear();
      if (isKnown) emit("sync");
      isKnown = false;
    },

    /**
     * Take a list of the server, a part of one, or a change. Listeners are called after all of it is
     * in the list. A member that is the same as before has no event.
     *
     * @param {Frame} frame
     */
    take({ channel, sync, more, ...change }) {
      const { joined, left, updated } = change;
      for (const member of membersOf(sync)) parts.set(...member);
      if (more) return;
      const changes = new Map(
        sync
          ? [...without(members), ...parts]
          : [...without(membersOf(left)), ...[joined, updated].flatMap(membersOf)],
      );
      parts.clear();
      /** @type {[string, string, any][]} */
      const events = [];
      for (const [key, infos] of changes) {
        const before = members.get(key);
        if (comparable(before) === comparable(infos)) continue;
        if (infos.length) members.set(key, infos);
        else members.delete(key);
        events.push(infos.length ? [before ? "update" : "join", key, infos] : ["leave", key, before]);
      }
      // The members of the first list have been there before.
      if (isKnown) for (const event of events) emit(...event);
      isKnown ||= !!sync;
      emit("presence", sync ? { present: Object.fromEntries(members) } : change);
      emit("sync");
    },
  };
}
