/** The state of the connection, in words. */

const WAITING = {
  unreachable: "No server",
  lost: "Connection lost",
  server: "The server restarts",
};

/** @param {import("django-sockets").Status} status */
export function textOf({ state, reason, code, retryAt }) {
  if (state === "connecting") return "Connecting …";
  if (state === "connected") return "Connected";
  if (state === "waiting") {
    const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    return `${WAITING[reason] ?? "Not connected"}, trying again ${seconds ? `in ${seconds} s` : "now"}`;
  }
  return reason === "client" ? "Link cut" : `The server has refused this page (${code})`;
}
