/** The times and bounds of the client. The build puts the numbers where they are used. */

// The connection
export const HELLO_MS = 10_000;
export const CLOSE_MS = 5000;
export const PROVIDED_MS = 10_000;
/** A connection that has lasted this long ends a series of failures or restarts. */
export const STABLE_MS = 10_000;
/** The longest delay after several restarts of the server, unless the server asks for a longer one. */
export const RESTART_CAP_SECONDS = 5;
export const BUFFERED_BYTES = 4 * 1024 * 1024;
/** The longest delay that a server may ask for. */
export const LONGEST_SECONDS = 3600;
/** Channels that the server has subscribed the socket to, whose names are kept for a gap. */
export const MOST_NAMES = 1000;

/** A timer of a browser that is longer, 24 days, would expire at once. */
export const LONGEST_MS = 2 ** 31 - 1;

// Liveness
export const DEFAULT_PING_SECONDS = 25;
export const MARGIN_MS = 10_000;
export const WAIT_MS = 5000;
export const REARM_MS = 5000;

// Requests
export const MOST_WAITING = 100;
export const TIMEOUT_MS = 10_000;
export const DEFAULT_REQUESTS = 8;

// Tokens of channels
export const RENEW_AFTER = 0.8;
export const MIN_SECONDS = 1;

// The state of an open websocket
export const OPEN = 1;

// Close codes with a meaning of their own
export const NORMAL = 1000;
export const LOST = 1006;
export const RESTART = 1012;
export const APPLICATION = 3000;
/** daphne adds this to the codes 1001 to 1015. */
export const DAPHNE = 2000;
export const UNAUTHORIZED = 4401;
