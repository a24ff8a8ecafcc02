/** All subscriptions of a socket: made in one frame, made again after every reconnect. */

import { areNames, isObject, numberOr, textOf } from "./frames.js";
import { createSubscription } from "./subscription.js";

/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {import("./subscription.js").Subscription} Subscription */

/**
 * @param {import("./environment.js").Environment} env
 * @param {import("./calls.js").Calls} calls
 */
export function createChannels(env, { control, fits }) {
  let isOpen = false;
  let isScheduled = false;
  let mostEntries = Infinity;
  /** @type {Map<string, Subscription>} */
  const subscriptions = new Map();
  /** Names to unsubscribe from. @type {Set<string>} */
  const left = new Set();
  /** Names whose `unsubscribe` is unanswered. @type {Set<string>} */
  const leaving = new Set();

  /** Do the rest after the code of the page that runs now, so that one frame has all of it. */
  const schedule = () => {
    if (!isScheduled) queueMicrotask(flush);
    isScheduled = true;
  };

  /** @param {Subscription[]} part */
  const subscribe = (part) => {
    const entries = part.map((subscription) => subscription.entry());
    const half = part.length >> 1;
    if (half && (part.length > mostEntries || !fits(JSON.stringify({ id: 2 ** 53, entries })))) {
      subscribe(part.slice(0, half));
      subscribe(part.slice(half));
      return;
    }
    for (const subscription of part) subscription.sent();
    control(
      { subscribe: entries },
      (ok) => {
        part.forEach((subscription, index) => {
          const answer = ok?.channels?.[index];
          subscription.answered(isObject(answer) ? answer : { error: {} });
        });
      },
      (error) => {
        for (const subscription of part) subscription.answered({ error });
      },
    );
  };

  const unsubscribe = () => {
    const names = [...left];
    left.clear();
    for (const name of names) leaving.add(name);
    const done = () => {
      for (const name of names) leaving.delete(name);
      schedule();
    };
    control({ unsubscribe: names }, done, done);
  };

  const flush = () => {
    isScheduled = false;
    if (!isOpen) return;
    if (left.size) unsubscribe();
    const ready = [...subscriptions.values()].filter(
      (subscription) => !leaving.has(subscription.name) && subscription.isReady(),
    );
    if (ready.length) subscribe(ready);
  };

  return {
    /**
     * See `Socket.channel`.
     *
     * @param {string} name
     * @param {import("../types/client.js").ChannelOptions} options
     */
    use(name, options) {
      let subscription = subscriptions.get(name);
      if (!subscription) {
        /** @param {boolean} wasSent */
        const leave = (wasSent) => {
          subscriptions.delete(name);
          if (wasSent) left.add(name);
          schedule();
        };
        subscription = createSubscription(env, name, options, { control, schedule, leave });
        subscriptions.set(name, subscription);
      }
      return subscription.use(options);
    },

    /**
     * The server has said hello: subscribe to everything.
     *
     * @param {any} limits
     */
    begin(limits) {
      isOpen = true;
      mostEntries = numberOr(limits?.subscriptions, Infinity);
      flush();
    },

    /** The connection has ended. */
    end() {
      isOpen = false;
      left.clear();
      leaving.clear();
      for (const subscription of subscriptions.values()) subscription.disconnected();
    },

    /**
     * A message of a channel.
     *
     * @param {Frame} frame
     * @returns {boolean | undefined} whether the channel is one of the page
     */
    deliver(frame) {
      const { channel } = frame;
      return left.has(channel) || leaving.has(channel) || subscriptions.get(channel)?.deliver(frame);
    },

    /**
     * @param {Frame} frame
     * @returns {string[]} the channels that are none of the page's
     */
    noteGap({ gap, reason }) {
      if (!areNames(gap)) return [];
      return gap.filter((name) => {
        const subscription = subscriptions.get(name);
        subscription?.noteGap(textOf(reason));
        return !subscription;
      });
    },

    /** @param {Frame} presence */
    notePresence: (presence) => subscriptions.get(presence.channel)?.notePresence(presence),

    /** @param {Frame} frame */
    ended: (frame) => subscriptions.get(frame.unsubscribed)?.ended(frame),
  };
}
