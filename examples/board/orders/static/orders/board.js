/** The page: one channel, the requests of its buttons, and the state after a gap. */

import { connect } from "django-sockets";
import { showConnection } from "./connection.js";
import { Orders } from "./orders.js";

const { channel, token, tokenUrl, stateUrl, staff } = document.body.dataset;
const problem = document.getElementById("problem");
const RETRY_MS = 2000;

const socket = connect("/ws/");
showConnection(socket);

const orders = new Orders(document.getElementById("board"), staff === "true", request);
for (const order of JSON.parse(document.getElementById("orders").textContent).reverse()) orders.show(order);

// Changes. The token contains the position of the state above, so that what has changed since comes
// first.
const changes = socket.channel(channel, { token, renew: fetchToken });
changes.on("message", (order) => orders.show(order));
changes.on("gap", loadState);

// The token of the staff allows to see who else looks at the board.
if (staff === "true") changes.presence.on("sync", showPresent);

function showPresent() {
  const names = [...changes.presence.list().values()].map(([{ name }]) => name);
  document.querySelector("#present span").textContent = names.sort().join(", ");
}

async function fetchToken() {
  const response = await fetch(tokenUrl);
  if (response.status === 401) return null; // The login has ended.
  if (!response.ok) throw new Error(`${tokenUrl} answered ${response.status}`);
  return response.text();
}

/** Changes may be missing. Until the state is there, it is asked for again: there is one gap only. */
async function loadState() {
  try {
    const response = await fetch(stateUrl);
    if (response.status === 401) return;
    if (!response.ok) throw new Error(`${stateUrl} answered ${response.status}`);
    const state = await response.json();
    for (const order of state.orders.reverse()) orders.show(order);
  } catch {
    setTimeout(loadState, RETRY_MS);
  }
}

/** Make a request. The answer has the changed order, which the channel brings, too. */
async function request(type, data) {
  problem.hidden = true;
  try {
    orders.show(await socket.request(type, data));
    return true;
  } catch (error) {
    problem.textContent = error.temporary ? "That did not work. Please try again." : error.message;
    problem.hidden = false;
    return false;
  }
}

const form = document.getElementById("place");
let reference = newReference();

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = document.getElementById("item");
  const button = form.querySelector("button");
  button.disabled = true;
  // A second attempt has the same reference: it makes no second order if the first one has arrived.
  if (await request("place", { reference, item: input.value.trim() })) {
    input.value = "";
    reference = newReference();
  }
  button.disabled = false;
});

/** A random UUID. (`crypto.randomUUID` needs TLS.) */
function newReference() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
