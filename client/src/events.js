/** Server-sent events, for networks that block websockets: the channels of one URL, read only. */

import { delayMs } from "./backoff.js";
import { createEmitter } from "./emitter.js";
import { areNames, decode, textOf } from "./frames.js";

const CLOSED = 2;

/** @param {unknown} text */
function bytesOf(text) {
  try {
    return Uint8Array.from(atob(String(text)), (character) => character.charCodeAt(0));
  } catch {
    return undefined; // It is no base64.
  }
}

/** @type {typeof import("../types/events.js").events} */
export function events(url, { EventSource = globalThis.EventSource, since, withCredentials } = {}) {
  if (!EventSource) throw new TypeError("there is no EventSource here: pass the option EventSource");
  const { on, emit } = createEmitter(["state", "message", "gap"]);
  /** @type {import("../types/events.js").EventsState} */
  let state = "connecting";
  let position = since ?? undefined;
  let failures = 0;
  /** @type {EventSource} */
  let source;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  /** @param {typeof state} next */
  const become = (next) => {
    if (state === next) return;
    state = next;
    emit("state", next);
  };

  /** @param {MessageEvent} event */
  const receive = ({ data: text, lastEventId }) => {
    const frame = decode(text);
    // Before the message is handed out: a listener may take the page away.
    if (lastEventId) position = lastEventId;
    if (!frame) return;
    const { channel, base64, gap, reason } = frame;
    // Events are text: the bytes of a binary broadcast come as base64.
    const data = base64 === true ? bytesOf(frame.data) : frame.data;
    if (data !== undefined) emit("message", data, { channel, position: frame.position ?? position });
    else if (areNames(gap)) emit("gap", { channels: gap, reason: textOf(reason) });
  };

  const open = () => {
    const address = new URL(url, globalThis.location?.href);
    // A new EventSource cannot set the header Last-Event-ID.
    if (position) address.searchParams.set("last_event_id", position);
    source = new EventSource(address.href, { withCredentials });
    source.onopen = () => {
      failures = 0;
      become("connected");
    };
    source.onmessage = receive;
    source.onerror = () => {
      // The browser connects again by itself, except after an HTTP error.
      if (source.readyState !== CLOSED) return become("connecting");
      become("waiting");
      timer = setTimeout(open, delayMs(Math.random(), failures++));
    };
  };

  open();
  return {
    get state() {
      return state;
    },
    get position() {
      return position;
    },
    on,
    close() {
      clearTimeout(timer);
      source.close();
      become("closed");
    },
  };
}
