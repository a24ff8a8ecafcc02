/**
 * The live page of Django's admin: reads pictures of all processes from a stream of server-sent
 * events, or asks for them again and again where the server cannot stream.
 */

const root = document.getElementById("live");
const { stream, snapshot, broker, close, mayClose } = root.dataset;
const [{ events }, draw] = await Promise.all([import(root.dataset.events), import(root.dataset.tables)]);

const POLL_MS = 3000;
const LATE_SECONDS = 6;
/** The times of django_sockets/observability/live/overview.py. */
const GONE_SECONDS = 15;
const FORGOTTEN_SECONDS = 300;

const byId = (id) => document.getElementById(id);
const now = () => performance.now() / 1000;

/** Everything that this page knows of the processes: id -> the last row, and when it answered. */
const known = new Map();
let picture = null;
let pictureAt = 0;
let polling = null;
let refused = false;

function show(text, status) {
  const place = byId("live-connection");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.status = status;
}

function announce(text) {
  byId("live-changes").textContent = text;
}

const isOver = (status) => status === "gone" || status === "ended";

/**
 * The rows of the newest picture, and the processes that only earlier pictures had. Another process
 * may serve this page now, which has not heard of them yet.
 */
function rows() {
  const found = new Map(picture.processes.map((row) => [row.process, row]));
  for (const [id, entry] of known) {
    if (found.has(id) || picture.hidden) continue;
    const age = now() - entry.answeredAt;
    const stays = isOver(entry.row.status) || entry.row.status === "idle";
    const status = stays ? entry.row.status : age < GONE_SECONDS ? "late" : "gone";
    if (age > FORGOTTEN_SECONDS) known.delete(id);
    else found.set(id, { ...entry.row, age_seconds: age, rates: {}, status });
  }
  const order = ["gone", "late", "draining", "serving", "idle", "ended"];
  return [...found.values()].sort((a, b) => order.indexOf(a.status) - order.indexOf(b.status));
}

/** Remember the rows, and tell a screen reader about changes. */
function remember() {
  const changes = [];
  for (const row of picture.processes) {
    const before = known.get(row.process);
    if (before && before.row.status !== row.status) changes.push(`${row.host}:${row.pid} is ${row.status}.`);
    row.up_seconds = Math.max(0, picture.time - row.started);
    known.set(row.process, { row, answeredAt: now() - row.age_seconds });
  }
  if (changes.length) announce(changes.slice(0, 5).join(" "));
}

function statusesOf(list) {
  if (picture.hidden) return picture.statuses;
  const statuses = {};
  for (const { status } of list) statuses[status] = (statuses[status] ?? 0) + 1;
  return statuses;
}

function take(next) {
  picture = next;
  pictureAt = now();
  remember();
  const list = rows();
  draw.drawProcesses(list, picture.hidden);
  draw.drawTotals(picture, statusesOf(list));
  draw.drawTables(picture, mayClose === "yes" ? close : null);
  root.dataset.feed = picture.feed;
  root.dataset.pictureTime = picture.time;
  const problem = byId("live-problem");
  problem.hidden = !picture.problem;
  const text = picture.problem ? `The processes cannot be asked: ${picture.problem}` : "";
  if (problem.textContent !== text) problem.textContent = text;
  byId("live-interrupted").hidden = !picture.interrupted;
}

/** Once a second: the age of the picture, and of processes that only this page remembers. */
function tick() {
  if (!picture) return;
  const age = now() - pictureAt;
  byId("live-time").textContent =
    age < LATE_SECONDS ? "" : `These figures are ${draw.duration(age)} old.`;
  if (age >= LATE_SECONDS) draw.drawProcesses(rows(), picture.hidden);
}

/** Ask for one picture. Returns whether there was an answer. */
async function ask() {
  let response;
  try {
    response = await fetch(snapshot, { credentials: "same-origin", redirect: "error" });
  } catch {
    return false;
  }
  refused = response.status === 403;
  if (refused) {
    show("You may not see this page any more. Log in and load it again.", "refused");
    return true;
  }
  if (!response.ok) return false;
  take(await response.json());
  return true;
}

async function poll(label) {
  if (polling) return;
  const mine = (polling = {});
  while (polling === mine) {
    if (!document.hidden || !picture) {
      const isAnswered = await ask();
      if (polling !== mine) return;
      if (refused) break;
      show(isAnswered ? label : "No connection. Trying again…", isAnswered ? "connected" : "waiting");
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  if (polling === mine) polling = null;
}

function followStream() {
  const source = events(new URL(stream, location.href));
  source.on("message", (data) => {
    polling = null;
    refused = false;
    show("Live", "connected");
    take(data);
  });
  source.on("state", (state) => {
    if (state === "connected") polling = null;
    // An HTTP error, such as 403 or 503. The stream tries again by itself.
    else if (state === "waiting") poll("Live, asking every 3 seconds");
    else if (state === "connecting") show("No connection. Trying again…", "waiting");
  });
}

byId("live-check").addEventListener("click", async ({ currentTarget: button }) => {
  const place = byId("live-check-state");
  button.disabled = true;
  place.textContent = "Checking…";
  try {
    const response = await fetch(broker, { credentials: "same-origin", redirect: "error" });
    const found = await response.json();
    draw.drawBroker(found);
    place.textContent = found.ok ? "The broker works." : "The broker has a problem.";
  } catch {
    place.textContent = "The check has failed. Try again.";
  }
  button.disabled = false;
});

byId("live-broker").hidden = true;
setInterval(tick, 1000);
if (stream) followStream();
else poll("Live, asking every 3 seconds, because this server cannot stream (WSGI)");
