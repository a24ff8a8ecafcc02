/** Server-sent events, for networks that block websockets: the channels of one URL, read only. */

/** `waiting`: the server has answered with an HTTP error; the client tries again by itself. */
export type EventsState = "connecting" | "connected" | "waiting" | "closed";

export interface EventsOptions {
  /** The position that the state on the page has. The messages after it are delivered first. */
  since?: string | null;
  /** Send the cookies of another origin. */
  withCredentials?: boolean;
  /** The class to use. Default: the global `EventSource`. */
  EventSource?: typeof EventSource;
}

export interface EventsListeners {
  /** `data` is JSON data, or a `Uint8Array` for a broadcast of bytes. */
  message: (data: any, info: { channel?: string; position?: string }) => void;
  /** Messages may be missing here: load the state again. */
  gap: (info: { channels: string[]; reason: string }) => void;
  state: (state: EventsState) => void;
}

export interface Events {
  readonly state: EventsState;
  /** The position of the last message. */
  readonly position: string | undefined;
  /** Call a function for each event. Returns a function that ends this. */
  on<E extends keyof EventsListeners>(event: E, listener: EventsListeners[E]): () => void;
  close(): void;
}

/**
 * Read the channels of a URL. The id of each event is its position; its data is a broadcast or a gap
 * of the protocol `django-sockets.v1`. After a reconnect the messages since the last one follow.
 *
 * @throws TypeError if the address is not valid, or there is no `EventSource`.
 */
export function events(url: string | URL, options?: EventsOptions): Events;
