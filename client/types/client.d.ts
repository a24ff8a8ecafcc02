/**
 * The browser client of django_sockets. It speaks the websocket subprotocol `django-sockets.v1`.
 *
 * All times are milliseconds, except where a name says otherwise.
 */

/** A value or a function that makes it, called for every attempt to connect. */
export type Provided<T> = T | (() => T | Promise<T>);

/** The part of the standard `WebSocket` class that the client uses. */
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocket;

export interface ConnectOptions {
  /**
   * The key of the login, for a server with a token middleware. It is sent as a subprotocol and
   * never in the URL. A function is called for each attempt to connect, so that it can fetch a new
   * key. If it returns null, the socket is closed; if it fails, the client tries again later.
   */
  token?: Provided<string | null>;
  /** The class to use. Default: the global `WebSocket`. Node has one from version 22. */
  WebSocket?: WebSocketClass;
}

/**
 * - `connecting`: an attempt is running.
 * - `connected`: the server is ready. Requests are sent at once.
 * - `waiting`: the connection was lost or could not be made. The client tries again by itself.
 * - `closed`: the client does not connect again by itself.
 */
export type State = "connecting" | "connected" | "waiting" | "closed";

/**
 * - `unreachable`: no connection came about. Is the network or the server down?
 * - `lost`: an existing connection ended without a reason.
 * - `refused`: the server is there and does not accept this user (codes 4401, 4403).
 * - `server`: the server has closed the connection; see `code`.
 * - `token`: the function that gives the token or the address has failed or returned null, or the
 *   browser does not take them.
 * - `page`: the page was left. The client connects again if the browser shows it again.
 * - `client`: `close()` was called.
 */
export type Reason =
  | "unreachable" | "lost" | "refused" | "server" | "token" | "page" | "client";

export interface Status {
  state: State;
  /** Why the socket is waiting or closed. */
  reason?: Reason;
  /** The close code of the last connection, if it had one. */
  code?: number;
  /** The time of the next attempt, as in `Date.now()`, while the socket is waiting. */
  retryAt?: number;
}

/** The error of a request, a channel or the connection. */
export interface ErrorInfo {
  /** A fixed text; see the table in docs/client-protocol.md. */
  code: string;
  /** English, for developers. */
  message: string;
  /** Whether the same may succeed later. */
  temporary: boolean;
  /** Seconds to wait before that. */
  after?: number;
}

/**
 * The rejection of a request. The client adds these codes to those of the server: `disconnected`
 * (the connection ended before the reply; the outcome is unknown), `timeout`, `busy` (100 requests
 * are waiting already), `too_large`, `closed` and `aborted`.
 */
export class RequestError extends Error implements ErrorInfo {
  constructor(info: ErrorInfo);
  code: string;
  temporary: boolean;
  after?: number;
}

export interface RequestOptions {
  /** Milliseconds until the request rejects with `timeout`. Default: 10 000. */
  timeout?: number;
  /** Rejects the request with `aborted`. The server may handle it all the same. */
  signal?: AbortSignal;
}

export interface ChannelOptions {
  /** A signed channel token, or a function that fetches one. Without it, the server asks `may_subscribe`. */
  token?: string | ((channel: string) => string | null | Promise<string | null>);
  /**
   * Fetches the next token, if `token` is a text. It is called before the token expires, and if the
   * server does not accept it. If it returns null, the channel ends.
   */
  renew?: (channel: string) => string | null | Promise<string | null>;
  /** The position that the state on the page has. The messages after it are delivered first. */
  since?: string | null;
  /** Deliver this number of kept messages first. Not together with `since`. */
  replay?: number;
  /**
   * Ask for the presence of the channel, too. A call of `channel.presence` does the same, later. The
   * server refuses the channel, or only its presence, if the user may not see it.
   */
  presence?: boolean;
}

export interface MessageInfo {
  /** The channel; undefined for a message that the server sent to this socket alone. */
  channel?: string;
  /** The position of the message, if the channel has a history. */
  position?: string;
}

export interface GapInfo {
  channels: string[];
  /** A text for logs. */
  reason: string;
}

/** The entries of each member by its key: one info for each of its connections, such as tabs. */
export type Infos<I = any> = Record<string, I[]>;

/** The whole list as it is now, or the members that have changed. */
export interface PresenceInfo<I = any> {
  /** Everybody who is present: after a subscription, or after changes that the client has missed. */
  present?: Infos<I>;
  /** Members that have come. */
  joined?: Infos<I>;
  /** Members that have left, with their last infos. */
  left?: Infos<I>;
  /** Members that stay, with their new infos. */
  updated?: Infos<I>;
}

export interface PresenceEvents<I = any> {
  /** A member has come. Those of the first list have no event: they have been there before. */
  join: (key: string, infos: I[]) => void;
  /** The infos of a member have changed, for example because of another tab. */
  update: (key: string, infos: I[]) => void;
  /** A member has left; `infos` are its last ones. */
  leave: (key: string, infos: I[]) => void;
  /** The list is up to date: after the events of each change, and after each subscription. */
  sync: () => void;
}

/** Who is present on a channel. All uses of the channel have the same list. */
export interface Presence<I = any> {
  /**
   * A copy of the list: the infos of each member by its key. It is complete when the channel has the
   * state `subscribed`, and stays as it is while the socket is not connected.
   */
  list(): Map<string, I[]>;
  /** Call a function for each event. Returns a function that ends this. */
  on<E extends keyof PresenceEvents<I>>(event: E, listener: PresenceEvents<I>[E]): () => void;
}

export interface ChannelEvents<T> {
  /** A message. Bytes arrive as a `Uint8Array`. */
  message: (data: T, info: MessageInfo) => void;
  /** Messages may be missing here: load the state again. */
  gap: (info: GapInfo) => void;
  /** The list of presence, or a change of it, as the server has sent it. */
  presence: (info: PresenceInfo) => void;
  /** The server refused or ended the subscription. It is not made again unless `error.temporary`. */
  error: (error: ErrorInfo) => void;
  /** The subscription has another state. */
  state: (state: ChannelState) => void;
}

/** `subscribed`: the server has answered. `refused`: see the event `error`. `closed`: by `close()`. */
export type ChannelState = "pending" | "subscribed" | "refused" | "closed";

/** One use of a channel. Several uses of the same name share one subscription. */
export interface Channel<T = any> {
  readonly name: string;
  readonly state: ChannelState;
  /** The position of the last message that was delivered, or of the subscription. */
  readonly position: string | undefined;
  /** Who is present on the channel. */
  readonly presence: Presence;
  /** Call a function for each event. Returns a function that ends this. */
  on<E extends keyof ChannelEvents<T>>(event: E, listener: ChannelEvents<T>[E]): () => void;
  /** End this use. The last one of a name unsubscribes. */
  close(): void;
}

export interface SocketEvents {
  state: (state: State, status: Status) => void;
  /** A message to this socket alone, or of a channel that the server has subscribed it to. */
  message: (data: any, info: MessageInfo) => void;
  /** Messages for `message` may be missing, for example after a reconnect: load the state again. */
  gap: (info: GapInfo) => void;
  /** An error of the connection, or of a message sent with `send`. */
  error: (error: ErrorInfo) => void;
}

export interface Socket {
  readonly state: State;
  readonly status: Status;
  /** The id of the present connection on the server, for log lines. */
  readonly session: string | undefined;
  /** Subscribe to a channel, now and after every reconnect. */
  channel<T = any>(name: string, options?: ChannelOptions): Channel<T>;
  /**
   * Send `{"type": type, ...data}` and return what the server's handler returns. Before the socket
   * is connected, the request waits. It is sent at most once: if the connection ends before the
   * reply, it rejects with the temporary error `disconnected`.
   */
  request<T = any>(type: string, data?: object, options?: RequestOptions): Promise<T>;
  /**
   * Send `{"type": type, ...data}` without a reply. Before the socket is connected, it waits like a
   * request. If it cannot be sent within 10 s, the event `error` tells why.
   */
  send(type: string, data?: object): void;
  /** Call a function for each event. Returns a function that ends this. */
  on<E extends keyof SocketEvents>(event: E, listener: SocketEvents[E]): () => void;
  /** Close for good, with the code 1000. What waits is rejected with `closed`. */
  close(): void;
  /** Connect now: after `closed`, for example after a login, or without the rest of a wait. */
  reconnect(): void;
}

/**
 * Connect to a `BaseSocketServer`, and stay connected.
 *
 * @param url The address: `wss://...`, or a path such as `/ws/` on the server of the page. A
 *   function is called for each attempt to connect.
 * @throws TypeError if the address is not one of a websocket, or there is no `WebSocket`.
 */
export function connect(url: Provided<string | URL>, options?: ConnectOptions): Socket;
