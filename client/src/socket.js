/** A connection that is made again until it is closed: the states, and the order of their parts. */

import { delayMs } from "./backoff.js";
import { createCalls } from "./calls.js";
import { createChannels } from "./channels.js";
import { createConnection } from "./connection.js";
import { createEmitter } from "./emitter.js";
import { errorInfo, failure, refuse } from "./errors.js";
import { isFunction, isObject, isText, textOf } from "./frames.js";
import { watchPage } from "./lifecycle.js";
import { MOST_NAMES, PROVIDED_MS, RESTART, RESTART_CAP_SECONDS, STABLE_MS } from "./limits.js";
import { codeOf, reaction, reasonOf } from "./reaction.js";
import { deadline } from "./timers.js";
import { addressOf } from "./url.js";

/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {import("../types/client.js").Status} Status */
/** @typedef {import("../types/client.js").Reason} Reason */

/** A wait for one of these reasons ends early if the page or the network comes back. */
const WAKEABLE = ["lost", "unreachable", "token"];

/**
 * @param {import("../types/client.js").Provided<string | URL>} url
 * @param {import("../types/client.js").ConnectOptions} options
 * @param {import("./environment.js").Environment} env
 * @returns {import("../types/client.js").Socket}
 */
export function createSocket(url, { token }, env) {
  const { on, emit } = createEmitter(["state", "message", "gap", "error"]);
  const calls = createCalls(env);
  const channels = createChannels(env, calls);
  const address = isFunction(url) ? url : addressOf(url, env.base);
  /** @type {Status} */
  let status;
  /** @type {import("./connection.js").Connection | undefined} */
  let connection;
  /** @type {string | undefined} */
  let session;
  /** Counts attempts, so that an older one has no effect. */
  let attempt = 0;
  let failures = 0;
  /** Restarts of the server in a row, counted apart: they are no failures. */
  let restarts = 0;
  let isRetried = false;
  let wasReady = false;
  let readyAt = Infinity;
  /** Names of channels that the server has subscribed this socket to. @type {Set<string>} */
  const others = new Set();
  /** @type {(() => void) | undefined} */
  let stopTimer;
  /** @type {() => void} */
  let stopWatching;

  /** @param {Status} next */
  const become = (next) => {
    status = next;
    emit("state", next.state, next);
  };

  /** The connection has ended, and what depends on it. */
  const cut = () => {
    connection = session = undefined;
    channels.end();
    calls.end();
  };

  /** End the connection, or the wait for one. */
  const leave = () => {
    attempt++;
    stopTimer?.();
    connection?.end();
    cut();
  };

  /** @param {{reason: Reason, code?: number}} why */
  const close = (why) => {
    stopWatching();
    calls.setClosed(true);
    become({ state: "closed", ...why });
  };

  /**
   * @param {{reason: Reason, code?: number}} why
   * @param {readonly [number, number]} after
   */
  const wait = (why, after) => {
    let steps, cap;
    if (why.code === RESTART) {
      steps = restarts++;
      cap = RESTART_CAP_SECONDS;
      failures = 0;
    } else steps = failures++;
    const ms = delayMs(env.random(), steps, after, cap);
    stopTimer = env.timer(ms, open);
    become({ state: "waiting", ...why, retryAt: env.nowMs() + ms });
  };

  /** @param {import("./connection.js").End} end */
  const ended = (end) => {
    const present = attempt;
    cut();
    // A listener may have closed the socket.
    if (present !== attempt) return;
    if (env.nowMs() - readyAt >= STABLE_MS) failures = restarts = 0;
    readyAt = Infinity;
    const why = { reason: reasonOf(end), code: codeOf(end) };
    let after = reaction(end);
    if (why.reason === "refused" && isFunction(token) && !isRetried) {
      // The function may have a better token than the one that was refused.
      isRetried = true;
      after ??= [0, 1];
    }
    if (after) wait(why, after);
    else close(why);
  };

  /** @param {Frame} frame */
  const message = (frame) => {
    const { channel, data, position } = frame;
    if (channel === undefined) emit("message", data, {});
    else if (isText(channel) && !channels.deliver(frame)) {
      if (others.size < MOST_NAMES) others.add(channel);
      emit("message", data, { channel, position });
    }
  };

  const ready = () => {
    if (status.state !== "connecting") return;
    const present = attempt;
    readyAt = env.nowMs();
    become({ state: "connected" });
    calls.release();
    if (wasReady && present === attempt) emit("gap", { channels: [...others], reason: "reconnect" });
    wasReady = true;
  };

  /** @param {Frame | null} frame */
  const receive = (frame) => {
    if (!frame) emit("error", failure("invalid_frame", "a frame could not be read"));
    else if ("data" in frame) message(frame);
    else if (calls.answer(frame)) return;
    else if ("gap" in frame) {
      const names = channels.noteGap(frame);
      if (names.length) emit("gap", { channels: names, reason: textOf(frame.reason) });
    } else if (isObject(frame.presence)) channels.notePresence(frame.presence);
    else if ("unsubscribed" in frame) channels.ended(frame);
    else if ("error" in frame) emit("error", errorInfo(frame.error));
    else if ("ready" in frame) ready();
  };

  /**
   * @param {string} to
   * @param {string | null | undefined} key
   */
  const connect = (to, key) => {
    const present = attempt;
    try {
      connection = createConnection(env, to, key, {
        greeted(hello) {
          isRetried = false;
          session = textOf(hello.session);
          calls.begin(/** @type {import("./connection.js").Connection} */ (connection), hello.limits);
          channels.begin(hello.limits);
        },
        frame: receive,
        end: (end) => present === attempt && ended(end),
      });
    } catch {
      // The browser's error may contain the token.
      close({ reason: "token" });
      emit("error", failure("invalid_address", "the address or the token is not valid"));
    }
  };

  /** Get the address and the token from their functions. */
  const provide = async () => {
    const present = attempt;
    const fail = () => {
      if (present !== attempt) return;
      attempt++; // What comes later has no effect.
      wait({ reason: "token" }, [0, 1]);
    };
    const stop = (stopTimer = deadline(env, PROVIDED_MS, fail));
    try {
      const [to, key] = await Promise.all([provided(address), provided(token)]);
      stop();
      if (present !== attempt) return;
      if (to && key !== null) connect(addressOf(to, env.base), key);
      else close({ reason: "token" });
    } catch {
      stop();
      fail();
    }
  };

  const open = () => {
    stopTimer?.();
    const present = ++attempt;
    become({ state: "connecting" });
    // A listener of the state may have closed the socket.
    if (present !== attempt) return;
    if (isText(address) && !isFunction(token)) connect(address, token);
    else provide();
  };

  const start = () => {
    calls.setClosed(false);
    stopWatching = watchPage(env, {
      awake() {
        if (connection) connection.check();
        else if (WAKEABLE.includes(`${status.reason}`)) open();
      },
      gone() {
        leave();
        become({ state: "waiting", reason: "page" });
      },
      restored() {
        if (status.reason === "page") open();
      },
    });
    open();
  };

  start();
  return {
    get state() {
      return status.state;
    },
    get status() {
      return status;
    },
    get session() {
      return session;
    },
    on,
    channel(name, options = {}) {
      if (!textOf(name)) refuse("a channel has a name");
      return channels.use(name, options);
    },
    request: async (type, data, options) => calls.post(messageOf(type, data), true, options),
    send(type, data) {
      calls.post(messageOf(type, data), false).catch((error) => emit("error", errorInfo(error)));
    },
    close() {
      if (status.state === "closed") return;
      leave();
      close({ reason: "client" });
    },
    reconnect() {
      const { state } = status;
      failures = restarts = 0;
      isRetried = false;
      if (state === "closed") start();
      else if (state === "waiting") open();
    },
  };
}

/**
 * @template T
 * @param {import("../types/client.js").Provided<T>} value
 * @returns {Promise<T>}
 */
const provided = async (value) =>
  isFunction(value) ? value() : value;

/**
 * @param {string} type
 * @param {object} [data]
 */
function messageOf(type, data = {}) {
  if (isText(type) && isObject(data) && !("type" in data)) return { type, ...data };
  refuse('a message needs a type, and its data is an object without "type"');
}
