/** One channel, shared by all of its uses on a page: its state, its position and its token. */

import { delayMs } from "./backoff.js";
import { createToken } from "./channel_token.js";
import { createEmitter } from "./emitter.js";
import { errorInfo, failure } from "./errors.js";
import { isAtLeast, isObject, isText, textOf } from "./frames.js";
import { MIN_SECONDS, RENEW_AFTER } from "./limits.js";
import { createPresence } from "./presence.js";
import { deadline } from "./timers.js";

/** @typedef {import("../types/client.js").ChannelState} ChannelState */
/** @typedef {import("../types/client.js").ChannelOptions} ChannelOptions */
/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {ReturnType<typeof createSubscription>} Subscription */

/**
 * One use of a channel.
 *
 * @typedef {object} Use
 * @property {(event: string, ...values: any[]) => void} emit
 * @property {boolean} isLate  the subscription may be ahead of the state that this use starts from
 */

const EVENTS = "message gap error state presence join update leave sync".split(" ");

/**
 * @param {import("./environment.js").Environment} env
 * @param {string} name
 * @param {ChannelOptions} options
 * @param {object} socket
 * @param {import("./calls.js").Calls["control"]} socket.control
 * @param {() => void} socket.schedule  looks again at all subscriptions, soon
 * @param {(wasSent: boolean) => void} socket.leave  the last use has ended
 */
export function createSubscription(env, name, options, { control, schedule, leave }) {
  /** @type {Set<Use>} */
  const uses = new Set();
  const token = createToken(env, name);
  /** @type {ChannelState} */
  let state = "pending";
  let position = options.since ?? undefined;
  // A signed channel comes with a state on the page, made before the subscription.
  let mustRecover = !!(position || options.token);
  let hasBegun = false;
  let isSent = false;
  /** Whether the page wants presence; undefined if it has not said so. */
  let wantsPresence = options.presence;
  /** Whether the last `subscribe` has asked for it. */
  let hasAsked = false;
  /** The token was fetched because the server has refused the one before. */
  let isRetried = false;
  let failures = 0;
  /** For the next attempt, or for the renewal of the token. @type {(() => void) | undefined} */
  let stopTimer;

  /**
   * @param {string} event
   * @param {...any} values
   */
  const emit = (event, ...values) => {
    for (const use of [...uses]) if (uses.has(use)) use.emit(event, ...values);
  };

  const presence = createPresence(emit);

  const isSubscribed = () => state === "subscribed";

  const askForPresence = () => {
    wantsPresence ??= true;
    schedule();
  };

  /** @param {string} reason */
  const gapInfo = (reason) => ({ channels: [name], reason });

  /** @param {ChannelState} next */
  const become = (next) => {
    if (state === next) return;
    state = next;
    emit("state", next);
  };

  const stop = () => {
    stopTimer?.();
    stopTimer = undefined;
  };

  /**
   * @param {number} ms
   * @param {() => void} action
   */
  const after = (ms, action) => {
    stop();
    stopTimer = deadline(env, ms, () => {
      stopTimer = undefined;
      action();
    });
  };

  const again = () => {
    become("pending");
    schedule();
  };

  /** @param {import("../types/client.js").ErrorInfo} error */
  const retryMs = ({ after = 0 }) => delayMs(env.random(), failures++, [after, 2 * after || 1]);

  /** @param {import("../types/client.js").ErrorInfo} error */
  const fail = (error) => {
    isSent = false;
    stop();
    if (error.temporary) after(retryMs(error), schedule);
    else presence.clear();
    become(error.temporary ? "pending" : "refused");
    emit("error", error);
  };

  /**
   * The channel was subscribed to without presence, and goes on so.
   *
   * @param {import("../types/client.js").ErrorInfo} error
   */
  const presenceRefused = (error) => {
    hasAsked = false;
    wantsPresence = error.temporary;
    if (wantsPresence) env.timer(retryMs(error), schedule);
    emit("error", error);
  };

  /** @param {any} seconds  until the token expires */
  const renewLater = (seconds) => {
    if (!isAtLeast(seconds, MIN_SECONDS)) return;
    const expiresAt = env.nowMs() + 1000 * seconds;
    token.expires(expiresAt);
    if (!token.isRenewable()) return;
    const retry = () => {
      if (isSent) after(Math.max(1000, (expiresAt - env.nowMs()) / 4), renew);
    };
    const renew = () =>
      token.refresh((value) => {
        // Without a new token, the subscription ends when the present one expires.
        if (!value || !isSent) return;
        /** @param {any} ok */
        const done = (ok) => {
          const answer = ok?.channels?.[0];
          if (answer?.error) retry();
          else renewLater(answer?.expires_in);
        };
        control({ renew: [{ channel: name, token: value }] }, done, retry);
      }, retry);
    after(1000 * seconds * RENEW_AFTER, renew);
  };

  /** @param {Frame} answer */
  const subscribed = ({ position: at, recovered, count, expires_in }) => {
    failures = 0;
    isRetried = false;
    renewLater(expires_in);
    // The messages that follow move the position. If the connection ends before them, they are
    // asked for again.
    if (!count && isText(at)) position = at;
    const isWhole = recovered === true || !mustRecover;
    mustRecover = hasBegun = true;
    become("subscribed");
    for (const use of uses) {
      if (!isWhole || use.isLate) use.emit("gap", gapInfo("resume"));
      use.isLate = false;
    }
    schedule(); // Presence may be wanted since the frame was sent.
  };

  return {
    name,

    /** The entry of a `subscribe` frame. */
    entry() {
      const isNew = !isSubscribed();
      return {
        channel: name,
        token: token.value(),
        since: isNew ? position : undefined,
        replay: isNew && position === undefined ? options.replay : undefined,
        presence: wantsPresence || undefined,
      };
    },

    /** Whether it is to be put into the next frame. It may fetch a token first. */
    isReady() {
      if (isSubscribed()) return !!wantsPresence && !hasAsked;
      if (state !== "pending" || isSent || stopTimer) return false;
      if (!token.isMissing()) return true;
      token.refresh(
        (value) => {
          if (state !== "pending") return;
          if (value) schedule();
          else fail(failure("token_invalid", "there is no token any more"));
        },
        () => {
          if (state === "pending") fail(failure("unavailable", "no new token", true));
        },
      );
      return false;
    },

    /** It is a part of a `subscribe` frame. */
    sent() {
      isSent = true;
      hasAsked = !!wantsPresence;
    },

    /** @param {Frame} answer */
    answered(answer) {
      // The page may have closed the channel, or the connection may have ended.
      if (!isSent || state === "closed") return;
      if (!("error" in answer)) {
        // Before the state: the list can be used as soon as the channel is subscribed to.
        if (isObject(answer.presence)) presence.take({ sync: answer.presence });
        return isSubscribed() || subscribed(answer);
      }
      const error = errorInfo(answer.error);
      if (isSubscribed()) return presenceRefused(error);
      if (error.temporary || isRetried || !token.isRenewable()) return fail(error);
      isSent = false;
      isRetried = true;
      token.discard();
      schedule();
    },

    /**
     * @param {Frame} frame
     * @returns {boolean} whether the message is for the channel's listeners, or comes too early
     */
    deliver({ data, channel, position: at }) {
      if (!isSubscribed()) return isSent;
      // Before the message is handed out: a listener may take the page away.
      if (isText(at)) position = at;
      emit("message", data, { channel, position: at });
      return true;
    },

    /** @param {string} reason */
    noteGap(reason) {
      if (isSubscribed()) emit("gap", gapInfo(reason));
    },

    /** @param {Frame} frame */
    notePresence(frame) {
      if (isSent) presence.take(frame);
    },

    /**
     * The server has ended the subscription.
     *
     * @param {Frame} frame
     */
    ended({ code, again: mayReturn }) {
      if (!isSent) return;
      const hadToken = token.value() !== undefined;
      token.discard();
      const isTemporary = mayReturn === true && !(hadToken && !token.isRenewable());
      if (isTemporary && hadToken) {
        isSent = false;
        stop();
        again();
      } else fail(failure(textOf(code), "the server has ended the subscription", isTemporary));
    },

    /** The connection has ended. */
    disconnected() {
      isSent = false;
      stop();
      presence.forgetParts();
      if (isSubscribed()) become("pending");
    },

    /**
     * Begin a use of the channel.
     *
     * @param {ChannelOptions} wanted
     * @returns {import("../types/client.js").Channel}
     */
    use(wanted) {
      const { since, token: key } = wanted;
      token.update(wanted);
      if (wanted.presence) wantsPresence = true;
      const isSame = since ? since === position : !key || (!hasBegun && key === options.token);
      const { on, emit } = createEmitter(EVENTS);
      const use = { emit, isLate: !isSame };
      uses.add(use);
      if (state === "refused") isRetried = false;
      schedule();
      if (!isSubscribed()) become("pending");
      else if (use.isLate) {
        queueMicrotask(() => {
          if (uses.has(use) && use.isLate) emit("gap", gapInfo("resume"));
          use.isLate = false;
        });
      }
      return {
        name,
        get state() {
          return uses.has(use) ? state : "closed";
        },
        get position() {
          return position;
        },
        on,
        presence: {
          on(event, call) {
            askForPresence();
            return on(event, call);
          },
          list() {
            askForPresence();
            return presence.list();
          },
        },
        close() {
          if (!uses.delete(use)) return;
          if (!uses.size) {
            stop();
            state = "closed";
            leave(isSent);
          }
          emit("state", "closed");
        },
      };
    },
  };
}
