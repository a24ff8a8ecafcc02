/** Hooks for React: a channel or the state of a socket, for as long as a component is on the page. */

import type { ChannelEvents, ChannelOptions, ChannelState, Socket, State } from "./client.js";

export interface ChannelHandlers<T = any> {
  onMessage?: ChannelEvents<T>["message"];
  onGap?: ChannelEvents<T>["gap"];
  onPresence?: ChannelEvents<T>["presence"];
  onError?: ChannelEvents<T>["error"];
}

/**
 * Subscribe a component to a channel. Without a name, there is no subscription. The options of the
 * first render count; the listeners may change with every render.
 *
 * @returns the state of the subscription
 */
export function useChannel<T = any>(
  socket: Socket,
  name: string | null | undefined,
  options?: ChannelHandlers<T> & ChannelOptions,
): ChannelState;

/** The state of a socket; the component renders again when it changes. */
export function useSocketState(socket: Socket): State;
