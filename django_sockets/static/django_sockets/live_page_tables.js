/** Draws the live page. Names in the figures come from clients, so that they are text, never HTML. */

const SHOWN_PICTURES = 60;
/** The longest list of a process; see django_sockets/hub/survey/report.py. */
const LONGEST_LIST = 20;
const SVG = "http://www.w3.org/2000/svg";
const numbers = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const byId = (id) => document.getElementById(id);

export const count = (value) => numbers.format(Math.round(value ?? 0));

/** For narrow places: 9,999,999 and 10M. */
const brief = (value) => (value >= 1e7 ? short.format(value) : count(value));

const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : brief(value));

function size(bytes) {
  if (!(bytes >= 1024)) return `${count(bytes)} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  const unit = Math.min(units.length, Math.floor(Math.log2(bytes) / 10)) - 1;
  const value = bytes / 1024 ** (unit + 1);
  return `${unit && value < 100 ? value.toFixed(1) : count(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

const answer = (seconds) => (seconds == null ? "–" : `${count(seconds * 1000)} ms`);

/**
 * Make the rows of a table those of `items`. Rows are kept, so that the focus stays where it is.
 *
 * @param {string} id the table
 * @param {Array} items
 * @param {(item) => string} key
 * @param {(item) => Array} cells texts, elements, or objects with `text` and `className`
 */
function fill(id, items, key, cells) {
  const table = byId(id);
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const body = table.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  let before = null;
  for (const item of items) {
    const name = key(item);
    const row = old.get(name) ?? document.createElement("tr");
    old.delete(name);
    row.dataset.key = name;
    if (item.status) row.dataset.status = item.status;
    cells(item).forEach((cell, index) => fillCell(table, row, index, cell, labels[index]));
    const place = before ? before.nextSibling : body.firstChild;
    if (place !== row) body.insertBefore(row, place);
    before = row;
  }
  for (const row of old.values()) row.remove();
  table.hidden = items.length === 0;
  const empty = document.querySelector(`[data-empty="${id}"]`);
  if (empty) empty.hidden = items.length > 0;
  const full = document.querySelector(`[data-full="${id}"]`);
  if (full) full.hidden = items.length < LONGEST_LIST;
}

function fillCell(table, row, index, content, label) {
  let cell = row.cells[index];
  if (!cell) {
    cell = row.insertCell();
    cell.dataset.label = label;
    if (table.getAttribute("role")) {
      row.setAttribute("role", "row");
      cell.setAttribute("role", "cell");
    }
  }
  const { text, className = "", element, status, small } = Object(content) === content ? content : { text: content };
  if (!cell.firstChild) {
    cell.append(element ? element() : document.createTextNode(""));
    if (small !== undefined) cell.append(document.createElement("small"));
  }
  if (text !== undefined && cell.firstChild.textContent !== String(text)) cell.firstChild.textContent = text;
  if (status) cell.firstChild.dataset.status = status;
  if (small !== undefined) cell.lastChild.textContent = small;
  cell.className = className;
  if (className.includes("live-number")) table.tHead.rows[0].cells[index].className = "live-number";
}

const number = (text, isBad = false) => ({
  text,
  className: isBad ? "live-number live-alert" : "live-number",
});
const named = (text) => ({ text, className: "live-name" });

function pill() {
  const made = document.createElement("span");
  made.className = "live-pill";
  return made;
}

function processCells(row) {
  const { numbers: own, rates } = row;
  const isOver = row.status === "gone" || row.status === "ended";
  return [
    { ...named(`${row.host}:${row.pid}`), small: row.version },
    { text: row.status, status: row.status, element: pill },
    number(row.status === "serving" && row.age_seconds < 4 ? "now" : `${duration(row.age_seconds)} ago`),
    number(answer(row.answer_seconds), row.answer_seconds > 0.5),
    number(isOver ? "–" : brief(own.sockets)),
    number(isOver ? "–" : brief(own.event_streams)),
    number(isOver ? "–" : brief(own.slow_clients), !isOver && own.slow_clients > 0),
    number(isOver ? "–" : size(own.queued_bytes)),
    number(brief(own.gaps)),
    number(rate(rates.delivered)),
    number(rate(rates.published)),
    number(isOver ? "–" : duration(row.up_seconds)),
  ];
}

/** Draw a list of processes. */
export function drawProcesses(rows, hidden) {
  fill("live-processes", rows, (row) => row.process, processCells);
  const note = byId("live-hidden");
  note.hidden = !hidden;
  note.textContent = `${count(hidden)} more processes are counted, but not listed.`;
}

const history = new Map();

/** One of the totals: its value, a note under it, and a curve of the last two minutes. */
function total(name, value, text, note, level = "") {
  const place = document.querySelector(`[data-total="${name}"]`);
  place.querySelector("dd").textContent = text;
  place.querySelector("dd").dataset.value = value;
  place.querySelector("p").textContent = note;
  place.dataset.level = level;
  const values = history.get(name) ?? [];
  history.set(name, values);
  values.push(value);
  if (values.length > SHOWN_PICTURES) values.shift();
  curve(place, values);
}

function curve(place, values) {
  let line = place.querySelector("polyline");
  if (!line) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${SHOWN_PICTURES - 1} 24`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    line = svg.appendChild(document.createElementNS(SVG, "polyline"));
    place.append(svg);
  }
  const most = Math.max(1, ...values);
  const first = SHOWN_PICTURES - values.length;
  const points = values.map((value, index) => `${first + index},${(23 - (22 * value) / most).toFixed(1)}`);
  line.setAttribute("points", points.join(" "));
}

export function drawTotals(picture, statuses) {
  const { numbers: sums, rates } = picture;
  const running = ["serving", "draining", "late"].reduce((sum, name) => sum + (statuses[name] ?? 0), 0);
  const others = ["late", "gone", "draining", "idle", "ended"]
    .filter((name) => statuses[name])
    .map((name) => `${statuses[name]} ${name}`);
  const level = statuses.gone ? "bad" : statuses.late ? "warn" : "";
  total("processes", running, brief(running), others.join(", ") || "all serving", level);
  const streams = sums.event_streams ? `and ${brief(sums.event_streams)} streams` : "";
  total("sockets", sums.sockets ?? 0, brief(sums.sockets), streams);
  total("delivered", rates.delivered ?? 0, rate(rates.delivered), lost(rates));
  const errors = rates.errors ? `${rate(rates.errors)} errors per second` : "";
  total("published", rates.published ?? 0, rate(rates.published), errors, errors && "bad");
  const waiting = sums.queued_bytes ? `${size(sums.queued_bytes)} waiting` : "";
  total("slow", sums.slow_clients ?? 0, brief(sums.slow_clients), waiting, sums.slow_clients ? "warn" : "");
  total("gaps", sums.gaps ?? 0, brief(sums.gaps), rates.gaps ? `${rate(rates.gaps)} per second` : "", rates.gaps ? "bad" : "");
}

const lost = (rates) => (rates.lost ? `${rate(rates.lost)} not sent per second` : "");

const pairs = (id, entries, make = count) =>
  fill(id, entries, ([name]) => name, ([name, value]) => [named(name), number(make(value))]);

/** Draw the tables below the processes. `closeAddress` is null without the right to close. */
export function drawTables(picture, closeAddress) {
  pairs("live-sockets", Object.entries(picture.sockets));
  pairs("live-channels", picture.channels);
  const counters = Object.entries(picture.numbers).filter(([, value]) => value);
  pairs("live-counters", counters);
  fill("live-users", picture.users, ([name]) => name, ([name, value]) => {
    const cells = [named(name), number(count(value))];
    return closeAddress ? [...cells, closeLink(closeAddress, name)] : cells;
  });
  const keys = new Map();
  const key = (one) => {
    const name = `${one.host}:${one.pid} ${one.socket} ${one.user}`;
    keys.set(name, (keys.get(name) ?? 0) + 1);
    return `${name} ${keys.get(name)}`;
  };
  fill("live-slow", picture.slow, key, (one) => [
    named(one.user ?? "none"),
    named(one.socket),
    named(`${one.host}:${one.pid}`),
    number(count(one.messages)),
    number(size(one.bytes)),
  ]);
}

function closeLink(address, user) {
  const element = () => {
    const link = document.createElement("a");
    link.className = "live-close";
    link.textContent = "Close…";
    link.href = `${address}?user=${encodeURIComponent(user)}`;
    link.setAttribute("aria-label", `Close the sockets of user ${user}`);
    return link;
  };
  return { element, className: "live-number" };
}

const flat = (name, value) =>
  Object(value) === value
    ? Object.entries(value).map(([key, one]) => [Array.isArray(value) ? name : `${name}: ${key}`, one])
    : [[name, value]];

/** Draw the report about the broker. */
export function drawBroker(found) {
  const { ok, problem, connect_ms: connect, round_trip_ms: trip, source, ...rest } = found;
  const times = { connect: connect && `${connect} ms`, "round trip": trip && `${trip} ms` };
  const rows = Object.entries({ problem, ...times, ...rest }).flatMap(([name, value]) => flat(name, value));
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  let index = 0;
  fill("live-broker", known, ([name]) => `${name} ${index++}`, ([name, value]) => [name, named(String(value))]);
}
