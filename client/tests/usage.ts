/** Typical uses, for the type checker: the comments name what it must refuse. */

import { RequestError, connect } from "../types/client.js";
import type { Channel, Socket, State } from "../types/client.js";
import { events } from "../types/events.js";
import { useChannel, usePresence, useSocketState } from "../types/react.js";

interface Order {
  id: number;
  paid: boolean;
}

export const socket: Socket = connect("/ws/", { token: async () => "key" });
export const channel: Channel<Order> = socket.channel<Order>("order:7", {
  token: "signed",
  renew: async (name) => (name ? "next" : null),
  since: null,
});
export const off: () => void = channel.on("message", (order, { position }) => {
  const paid: boolean = order.paid;
  const text: string | undefined = position;
  return void [paid, text];
});
channel.on("gap", ({ channels, reason }) => void [channels.length, reason.length]);
// @ts-expect-error: no such event
channel.on("mesage", () => {});
// @ts-expect-error: an order has no name
channel.on("message", (order) => order.name);
const list: Map<string, any[]> = channel.presence.list();
channel.presence.on("join", (key, infos) => void [list.get(key), infos.length]);
channel.presence.on("sync", () => void list.size);
// @ts-expect-error: no such event
channel.presence.on("message", () => {});
// @ts-expect-error: the token is a text
socket.channel("a", { token: 7 });

socket.on("state", (state, { code, retryAt }) => {
  const known: State = state;
  return void [known, code?.toFixed(), retryAt?.toFixed()];
});

export async function pay(): Promise<number> {
  try {
    return await socket.request<number>("pay", { order: 7 }, { timeout: 5000 });
  } catch (error) {
    if (error instanceof RequestError && error.temporary) return error.after ?? 0;
    throw error;
  }
}
// @ts-expect-error: the data of a message is an object
socket.send("say", "hello");

events("/events/", { since: "P" }).on("message", (data, { channel: name }) => void [data, name]);

export function Component(): string {
  const state = useSocketState(socket);
  const names = [...usePresence<{ name: string }>(socket, "order:7").values()].map(([info]) => info?.name);
  return `${state} ${names} ${useChannel<Order>(socket, "order:7", { onMessage: ({ paid }) => void paid, since: "P" })}`;
}
