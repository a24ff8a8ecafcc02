/** Hooks for React: a channel, its presence, or the state of a socket, while a component is shown. */

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

/** @type {typeof import("../types/react.js").usePresence} */
export function usePresence(socket, name, options) {
  const first = useRef(options);
  const [list, setList] = useState(() => new Map());
  useEffect(() => {
    if (!name) return setList(new Map());
    const channel = socket.channel(name, { ...first.current, presence: true });
    const show = () => setList(channel.presence.list());
    channel.presence.on("sync", show);
    show(); // Another use of the channel may have the list already.
    return () => channel.close();
  }, [socket, name]);
  return list;
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
