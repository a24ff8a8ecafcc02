/** One websocket, from the attempt to its end: the handshake, pings, and the reason of the end. */

import { decode, isObject } from "./frames.js";
import { BUFFERED_BYTES, CLOSE_MS, HELLO_MS, LOST, NORMAL, OPEN } from "./limits.js";
import { watchLiveness } from "./liveness.js";
import { deadline } from "./timers.js";

/** @typedef {import("./frames.js").Frame} Frame */
/** @typedef {ReturnType<typeof createConnection>} Connection */

/**
 * @typedef {object} End
 * @property {number} code  the close code; 1006 if there was none
 * @property {boolean} isGreeted  whether the server has said hello
 * @property {Frame | undefined} bye  what the server has said about the end
 */

/**
 * @typedef {object} Receiver
 * @property {(hello: Frame) => void} greeted
 * @property {(frame: Frame | null) => void} frame  any other frame; null if it is malformed
 * @property {(end: End) => void} end  called once
 */

const PROTOCOL = "django-sockets.v1";
const TOKEN_PROTOCOL = "django-sockets.token";


/**
 * @param {import("./environment.js").Environment} env
 * @param {string} url
 * @param {string | null | undefined} token
 * @param {Receiver} receiver
 */
export function createConnection(env, url, token, receiver) {
  const socket = new env.WebSocket(url, token ? [PROTOCOL, TOKEN_PROTOCOL, token] : [PROTOCOL]);
  /** @type {import("./liveness.js").Liveness | undefined} */
  let liveness;
  /** @type {Frame | undefined} */
  let bye;
  let isGreeted = false;
  let hasEnded = false;
  let answersPings = false;
  let pings = 0;

  /** @param {string} text */
  const write = (text) => {
    const canWrite = !hasEnded && !bye && socket.readyState === OPEN;
    if (canWrite) socket.send(text);
    return canWrite;
  };

  const end = (code = NORMAL) => {
    if (hasEnded) return;
    hasEnded = true;
    stopDeadline();
    liveness?.stop();
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(NORMAL); // On a closed socket, this has no effect.
    receiver.end({ code, isGreeted, bye });
  };

  const lost = () => end(LOST);

  /** @param {number} ms */
  const wait = (ms) => {
    stopDeadline?.();
    stopDeadline = deadline(env, ms, lost);
  };

  /** @param {Frame} hello */
  const begin = (hello) => {
    isGreeted = true;
    answersPings = hello.pong === true;
    stopDeadline();
    liveness = watchLiveness(env, hello.ping, () => write(`{"ping":${++pings}}`), lost);
    receiver.greeted(hello);
  };

  /** @type {() => void} */
  let stopDeadline;
  wait(HELLO_MS);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => wait(HELLO_MS);
  socket.onerror = () => {}; // A close follows.
  socket.onclose = (event) => end(event.code || LOST);
  socket.onmessage = (event) => {
    liveness?.heard();
    const frame = decode(event.data);
    if (!frame || "data" in frame) receiver.frame(frame);
    else if ("ping" in frame) {
      if (answersPings) write(JSON.stringify({ pong: frame.ping }));
    } else if (isObject(frame.bye)) {
      bye = frame.bye;
      wait(CLOSE_MS);
    } else if (!isObject(frame.hello)) receiver.frame(frame);
    else if (!isGreeted) begin(frame.hello);
  };

  return {
    /** Sends a frame; returns whether it was sent. */
    write,
    /** Ends the connection. */
    end,
    /** Finds out whether the connection still works. */
    check: () => liveness?.check(),
    /** Whether so much waits in the browser that no more should be sent. */
    isFull: () => socket.bufferedAmount > BUFFERED_BYTES,
  };
}
