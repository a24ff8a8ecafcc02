/** A client with a clock, a server and a page that the tests control. */

import assert from "node:assert/strict";

import { createSocket } from "../src/socket.js";

export const HELLO = {
  version: 1,
  session: "8f14e45fceea167a",
  ping: 25,
  pong: false,
  limits: { message_bytes: 1048576, requests: 8, subscriptions: 1000 },
};

/** Lets promises go on. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

export class Clock {
  now = 1_700_000_000_000;
  timers = new Set();

  timer(ms, callback) {
    const timer = { due: this.now + Math.max(0, ms), callback };
    this.timers.add(timer);
    return () => void this.timers.delete(timer);
  }

  /** Time passes, and timers run when they are due. */
  advance(ms) {
    const end = this.now + ms;
    for (;;) {
      const next = [...this.timers].sort((a, b) => a.due - b.due)[0];
      if (!next || next.due > end) break;
      this.now = Math.max(this.now, next.due);
      this.timers.delete(next);
      next.callback();
    }
    this.now = end;
  }

  /** Time passes while the page is frozen; the timers that are due by then run after it. */
  sleep(ms) {
    this.now += ms;
  }

  wake() {
    this.advance(0);
  }

  /** Milliseconds until the first timer is due. */
  get next() {
    return Math.min(...[...this.timers].map(({ due }) => due)) - this.now;
  }
}

export class FakeWebSocket {
  readyState = 0;
  bufferedAmount = 0;
  sent = [];
  /** The code that the client has closed with. */
  closed = undefined;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
  }

  send(text) {
    if (this.readyState !== 1) throw new Error("InvalidStateError");
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new Error("InvalidAccessError");
    }
    this.closed ??= code ?? null;
    this.readyState = 2;
  }

  /** The frames that were sent since the last call. */
  take() {
    return this.sent.splice(0);
  }

  // What the server does:

  open() {
    this.readyState = 1;
    this.onopen?.({});
    return this;
  }

  /** A frame, a text or bytes. */
  receive(frame) {
    const isRaw = typeof frame === "string" || frame instanceof ArrayBuffer;
    this.onmessage?.({ data: isRaw ? frame : JSON.stringify(frame) });
    return this;
  }

  accept(hello = {}) {
    return this.open().receive({ hello: { ...HELLO, ...hello } });
  }

  ready(hello) {
    return this.accept(hello).receive({ ready: {} });
  }

  end(code) {
    this.readyState = 3;
    this.onerror?.({});
    this.onclose?.({ code });
  }
}

/** A page, or with `document: false` a worker. */
export class Page {
  window = new EventTarget();
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });

  fire(name) {
    this.window.dispatchEvent(new Event(name));
  }

  show(state) {
    this.document.visibilityState = state;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }
}

export function world({ url = "wss://example.com/ws/", page = new Page(), random = 0.5, ...options } = {}) {
  const clock = new Clock();
  const opened = [];
  class WebSocket extends FakeWebSocket {
    constructor(address, protocols) {
      super(address, protocols);
      opened.push(this);
    }
  }
  const env = {
    nowMs: () => clock.now,
    timer: (ms, callback) => clock.timer(ms, callback),
    random: () => here.random,
    WebSocket,
    window: page?.window,
    document: page?.document,
    base: "https://example.com/page/",
  };
  const here = {
    clock,
    page,
    env,
    opened,
    random,
    /** Every event of the socket, as [name, ...values]. */
    events: [],
    /** The websocket of the last attempt. */
    get server() {
      return opened.at(-1);
    },
    socket: undefined,
  };
  here.socket = createSocket(url, options, env);
  record(here.events, here.socket, ["state", "message", "gap", "error"]);
  return here;
}

/** Collect the events of a socket or a channel. */
export function record(events, emitter, names) {
  for (const name of names) emitter.on(name, (...values) => events.push([name, ...values]));
  return events;
}

export const CHANNEL_EVENTS = ["message", "gap", "error", "state"];
export const PRESENCE_EVENTS = ["join", "update", "leave", "sync"];

/** A connected socket. */
export async function connected(options) {
  const here = world(options);
  here.server.ready();
  await settled();
  return here;
}

/** Answer the only frame that was sent; returns it. */
export async function answer(here, ...channels) {
  await settled();
  const [frame, ...more] = here.server.take();
  assert.deepEqual(more, []);
  here.server.receive({ id: frame.id, ok: { channels } });
  await settled();
  return frame;
}
