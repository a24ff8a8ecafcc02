/** Hooks for React: a channel or the state of a socket, for as long as a component is on the page. */

import { useEffect, useRef, useState, useSyncExternalStore } from "react";

/** @typedef {import("../types/react.js").ChannelHandlers} ChannelHandlers */

/** @type {typeof import("../types/react.js").useChannel} */
export function useChannel(socket, name, { onMessage, onGap, onPresence, onError, ...options } = {}) {
  // The listeners of the last render are called, without a new subscription for each render.
  const latest = useRef(/** @type {any} */ ({}));
  latest.current = { message: onMessage, gap: onGap, presence: onPresence, error: onError };
  const first = useRef(options);
  const [state, setState] = useState(/** @type {any} */ ("pending"));
  useEffect(() => {
    if (!name) return;
    const channel = socket.channel(name, first.current);
    for (const event of /** @type {const} */ (["message", "gap", "presence", "error"])) {
      channel.on(event, (/** @type {any[]} */ ...values) => latest.current[event]?.(...values));
    }
    channel.on("state", setState);
    setState(channel.state);
    return () => channel.close();
  }, [socket, name]);
  return state;
}

/** @type {typeof import("../types/react.js").useSocketState} */
export function useSocketState(socket) {
  const subscribe = useRef({ socket, call: socket.on.bind(socket, "state") });
  if (subscribe.current.socket !== socket) {
    subscribe.current = { socket, call: socket.on.bind(socket, "state") };
  }
  const read = () => socket.state;
  return useSyncExternalStore(subscribe.current.call, read, read);
}
