/** The state of the connection, in words. */

const WAITING = {
  unreachable: "No server",
  lost: "Connection lost",
  server: "The server restarts",
};

/** @param {import("django-sockets").Socket} socket */
export function showConnection(socket) {
  const line = document.getElementById("connection");

  const show = () => {
    const { state, reason } = socket.status;
    const text = textOf(socket.status);
    line.dataset.state = state;
    if (line.textContent !== text) line.textContent = text;
    const isLoggedOut = state === "closed" && reason === "refused";
    document.getElementById("logged-out").hidden = !isLoggedOut;
    document.body.classList.toggle("ended", isLoggedOut);
  };

  socket.on("state", show);
  setInterval(show, 1000); // Counts down to the next attempt.
  show();
}

/** @param {import("django-sockets").Status} status */
function textOf({ state, reason, code, retryAt }) {
  if (state === "connecting") return "Connecting …";
  if (state === "connected") return "Live";
  if (state === "waiting") {
    const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    return `${WAITING[reason] ?? "Not connected"}, trying again ${seconds ? `in ${seconds} s` : "now"}`;
  }
  return reason === "refused" ? "Logged out" : `Closed by the server (${code})`;
}
