/** Hooks for React: a channel, its presence, or the state of a socket, while a component is shown. */

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

/**
 * The members of a channel: the infos of each by its key. The component renders again when they
 * change. Without a name, there are none. The options of the first render count. Other uses of the
 * channel on the page, such as `useChannel`, share the subscription.
 */
export function usePresence<I = any>(
  socket: Socket,
  name: string | null | undefined,
  options?: ChannelOptions,
): Map<string, I[]>;

/** The state of a socket; the component renders again when it changes. */
export function useSocketState(socket: Socket): State;
