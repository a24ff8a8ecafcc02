/** Frames with an `id`, and their answers. At most `limits.requests` of them are unanswered. */

import { RequestError, errorInfo, failure } from "./errors.js";
import { byteLength, numberOr } from "./frames.js";
import { DEFAULT_REQUESTS, MOST_WAITING, TIMEOUT_MS } from "./limits.js";
import { deadline } from "./timers.js";

/** @typedef {import("../types/client.js").ErrorInfo} ErrorInfo */
/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {ReturnType<typeof createCalls>} Calls */

/**
 * @typedef {object} Call
 * @property {number} [id]  absent if no answer is wanted
 * @property {string} text
 * @property {(ok?: any) => void} done
 * @property {(error: ErrorInfo) => void} fail
 */

/** @param {import("./environment.js").Environment} env */
export function createCalls(env) {
  /** @type {import("./connection.js").Connection | undefined} */
  let connection;
  let isReady = false;
  let isClosed = false;
  let ids = 0;
  let most = DEFAULT_REQUESTS;
  let mostBytes = Infinity;
  /** @type {Map<number, Call>} */
  const open = new Map();
  /** @type {Set<Call>} */
  const waiting = new Set();
  /** @type {Call[]} */
  let control = [];

  /** @param {string} text */
  const fits = (text) =>
    // A character has at most 3 bytes.
    3 * text.length <= mostBytes || byteLength(text) <= mostBytes;

  /**
   * @param {Call} call
   * @param {number} places  how many calls may be open
   */
  const write = (call, places) => {
    const { id, text } = call;
    if (id && open.size >= places) return false;
    if (!connection?.write(text)) return false;
    if (id) open.set(id, call);
    return true;
  };

  const flush = () => {
    while (control[0] && write(control[0], most)) control.shift();
    if (!isReady || control.length) return;
    for (const call of waiting) {
      if (!fits(call.text)) call.fail(failure("too_large", `more than ${mostBytes} bytes`));
      // One place is kept for frames about subscriptions.
      else if (write(call, Math.max(1, most - 1))) {
        waiting.delete(call);
        if (!call.id) call.done();
      }
    }
  };

  /**
   * @param {Frame} frame
   * @param {(ok: any) => void} done
   * @param {(error: ErrorInfo) => void} fail
   * @returns {Call}
   */
  const make = (frame, done, fail) => ({ id: frame.id, text: JSON.stringify(frame), done, fail });

  /** @param {Iterable<Call>} calls */
  const failAll = (calls, code = "disconnected", message = "the connection ended first") => {
    for (const call of [...calls]) call.fail(failure(code, message, code !== "closed"));
  };

  /** @param {Iterable<Call>} calls */
  const failClosed = (calls) => failAll(calls, "closed", "the socket is closed");

  return {
    fits,

    /**
     * The server has said hello: frames about subscriptions can be sent.
     *
     * @param {import("./connection.js").Connection} present
     * @param {any} limits
     */
    begin(present, limits) {
      connection = present;
      most = numberOr(limits?.requests, DEFAULT_REQUESTS);
      mostBytes = numberOr(limits?.message_bytes, Infinity);
    },

    /** The server is ready: requests can be sent. */
    release() {
      isReady = true;
      flush();
    },

    /** The connection has ended. What was sent is never sent again; what waits goes on waiting. */
    end() {
      connection = undefined;
      isReady = false;
      control = [];
      const sent = [...open.values()];
      open.clear();
      failAll(sent);
    },

    /** @param {boolean} closed  whether nothing may wait for another connection */
    setClosed(closed) {
      isClosed = closed;
      if (closed) failClosed(waiting);
    },

    /**
     * Send a frame about subscriptions, ahead of requests. If the connection ends before it is sent,
     * neither function is called.
     *
     * @param {Frame} frame
     * @param {(ok: any) => void} done
     * @param {(error: ErrorInfo) => void} fail
     */
    control(frame, done, fail) {
      control.push(make({ id: ++ids, ...frame }, done, fail));
      flush();
    },

    /**
     * Send a message as soon as the server is ready.
     *
     * @param {object} message
     * @param {boolean} isRequest  whether to wait for a reply, else only until it is sent
     * @param {import("../types/client.js").RequestOptions} [options]
     * @returns {Promise<any>}
     */
    post(message, isRequest, { timeout = TIMEOUT_MS, signal } = {}) {
      return new Promise((resolve, reject) => {
        const settle = () => {
          stop();
          signal?.removeEventListener("abort", abort);
          waiting.delete(call);
          // If the request was sent, it still counts until the server has answered.
          call.done = call.fail = () => {};
        };
        const call = make(
          isRequest ? { id: ++ids, message } : { message },
          (ok) => (settle(), resolve(ok)),
          (error) => (settle(), reject(new RequestError(error))),
        );
        const abort = () => call.fail(failure("aborted", "the request was aborted"));
        const stop = deadline(env, timeout, () =>
          call.fail(failure("timeout", `nothing within ${timeout} ms`, true)),
        );
        if (signal?.aborted) return abort();
        signal?.addEventListener("abort", abort);
        if (isClosed) failClosed([call]);
        else if (waiting.size >= MOST_WAITING || connection?.isFull()) {
          failAll([call], "busy", "too much is waiting already");
        } else {
          waiting.add(call);
          flush();
        }
      });
    },

    /**
     * @param {Frame} frame
     * @returns {boolean} whether the frame is an answer, known or not
     */
    answer(frame) {
      const call = open.get(frame.id);
      const isError = "error" in frame;
      if (call && (isError || "ok" in frame)) {
        open.delete(frame.id);
        if (isError) call.fail(errorInfo(frame.error));
        else call.done(frame.ok);
        flush();
      }
      return "id" in frame;
    },
  };
}
