"use strict";

// All data is inserted as text, never as markup, because names come from workers. The page's
// Content-Security-Policy blocks everything else too.

const REFRESH_MS = 2000;
const HIDDEN_REFRESH_MS = 15000;
const ANSWER_MS = 5000;
const RATE_MS = 1000; // No rate is shown for a shorter time than this.
const ROWS_AT_FIRST = 20;
const ROUNDS_AT_FIRST = 12; // Most rounds wait for the same ranks, which are shown above them.
const CHANGES_AT_FIRST = 8;
const ALERTS = 5;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)}\u00a0${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => s >= size);
  const two = parts.slice(first, first + 2);
  let rest = s;
  return two.map(([size, unit]) => { const n = Math.floor(rest / size); rest %= size; return n ? `${n} ${unit}` : ""; })
    .filter(Boolean).join(" ");
}

function ranks(list) {
  // 0, 1, 2, 5 becomes 0–2, 5.
  const runs = [];
  for (const rank of list) {
    const last = runs[runs.length - 1];
    if (last && last[1] === rank - 1) last[1] = rank;
    else runs.push([rank, rank]);
  }
  const shown = runs.slice(0, 12).map(([a, b]) => (a === b ? `${a}` : b === a + 1 ? `${a}, ${b}` : `${a}–${b}`));
  return shown.join(", ") + (runs.length > 12 ? ", …" : "");
}

function count(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

function named(list) {
  return `rank${list.length === 1 ? "" : "s"} ${ranks(list)}`;
}

function table(columns, rows, cards) {
  const body = element("tbody");
  for (const row of rows) {
    const line = element("tr");
    row.forEach((value, i) => {
      const [text, kind] = Array.isArray(value) ? value : [value, ""];
      line.append(element("td", { "class": `${columns[i][1] || ""} ${kind}`.trim(), "data-title": columns[i][0] }, text));
    });
    body.append(line);
  }
  const head = element("tr", {}, ...columns.map(([title, kind]) => element("th", { "class": kind || "", scope: "col" }, title)));
  return element("table", { "class": cards ? "cards" : "" }, element("thead", {}, head), body);
}

function chart(throughput) {
  // Received goes up and sent goes down: they are often equal, and one curve would hide the other.
  const received = throughput.received_bytes_per_second, sent = throughput.sent_bytes_per_second;
  const width = 600, height = 120, middle = height / 2, slots = 150;
  const most = Math.max(1, ...received, ...sent);
  const curve = (values, sign, kind) => {
    const all = [0, ...values].slice(-slots);
    const at = (i) => (width * (slots - all.length + i) / (slots - 1)).toFixed(1);
    const points = all.map((value, i) => `${at(i)},${(middle - sign * (middle - 2) * value / most).toFixed(1)}`).join(" ");
    return [drawing("polygon", { "class": `${kind} area`, points: `${at(0)},${middle} ${points} ${width},${middle}` }),
      drawing("polyline", { "class": kind, points })];
  };
  const last = (values) => `${bytes(values.length ? values[values.length - 1] : 0)}/s`;
  const picture = drawing("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `received ${last(received)}, sent ${last(sent)}` },
  ...[1, height - 1].map((y) => drawing("line", { "class": "grid", x1: 0, x2: width, y1: y, y2: y })),
  ...curve(received, 1, "received"), ...curve(sent, -1, "sent"),
  drawing("line", { "class": "axis", x1: 0, x2: width, y1: middle, y2: middle }));
  const scale = received.length ? `${bytes(most)}/s` : "";
  return element("figure", {},
    element("figcaption", {},
      element("span", { "class": "key-received" }, "received ", element("b", {}, last(received))),
      element("span", { "class": "key-sent" }, "sent ", element("b", {}, last(sent)))),
    element("div", { "class": "plot" }, picture, element("span", { "class": "scale above" }, scale),
      element("span", { "class": "scale below" }, scale)),
    element("div", { "class": "times" }, element("span", {}, `${duration(slots * throughput.seconds)} ago`),
      element("span", {}, "now")));
}

function facts(aggregator, report) {
  const workers = report.jobs.flatMap((job) => job.workers).filter((worker) => worker.state === "connected").length;
  const budget = aggregator.memory_budget_bytes;
  const list = [
    ["jobs", new Set(report.jobs.map((job) => job.name)).size],
    ["workers connected", workers],
    ["memory for sums", `${bytes(aggregator.memory_reserved_bytes)} of ${budget ? bytes(budget) : "no limit"}`],
    ["event loop lag", duration(aggregator.loop_lag_seconds)],
    ["up for", duration(aggregator.uptime_seconds)],
    ["processor time", duration(aggregator.cpu_seconds)],
    ["version", aggregator.version],
    ["incarnation", aggregator.incarnation],
  ];
  return list.map(([title, value]) => element("div", {}, element("dt", {}, title), element("dd", {}, value)));
}

const opened = new Map();   // Whether the reader opened or closed a job, by its title.
const whole = new Set();    // The titles of jobs whose workers and rounds are all shown.
let rates = new Map();      // By job: bytes received and sent at a time, and the rate until then as text.

function rateOf(job, now) {
  // Two refreshes in quick succession, as when the page becomes visible, give no useful rate.
  const before = rates.get(titled(job));
  const known = before && job.received_bytes >= before.received && job.sent_bytes >= before.sent;
  if (known && now - before.at < RATE_MS) return before;
  const seconds = known ? (now - before.at) / 1000 : 0;
  const text = known ? `, ${bytes((job.received_bytes - before.received) / seconds)}/s in, ` +
    `${bytes((job.sent_bytes - before.sent) / seconds)}/s out` : "";
  return { at: now, received: job.received_bytes, sent: job.sent_bytes, text };
}

function oldestWait(job) {
  // At a relay, the others wait for an aggregator.
  const oldest = job.rounds.find((round) => round.waiting_for.length);
  return oldest && oldest.waiting_seconds >= 1 ? oldest : null;
}

function attention(report) {
  // Problems come first: on a phone everything else is below the screen.
  const waiting = report.jobs.filter(oldestWait);
  const lines = waiting.slice(0, ALERTS).map((job) => {
    const name = element("a", { href: "#jobs" }, titled(job));
    name.addEventListener("click", (event) => {
      event.preventDefault();
      opened.set(titled(job), true);
      show(report);
      [...document.querySelectorAll(".job")].find((card) => card.dataset.job === titled(job))?.scrollIntoView();
    });
    const { waiting_for, waiting_seconds } = oldestWait(job);
    return element("p", { "class": "waits" }, "Job ", name, ` has waited ${duration(waiting_seconds)} for ${named(waiting_for)}.`);
  });
  if (waiting.length > ALERTS) lines.push(element("p", { "class": "waits" }, `${waiting.length - ALERTS} more jobs wait.`));
  return lines;
}

function keyed(round) {
  return round.label ? `${round.key} (${round.label})` : round.key;
}

function waits(job) {
  const oldest = oldestWait(job);
  if (!oldest) return [];
  const more = job.rounds_waiting > 1 ? `; ${job.rounds_waiting - 1} more wait` : "";
  return [element("p", { "class": "waits" }, `Round ${oldest.round} of ${keyed(oldest)}, shard ${oldest.shard}, has waited ` +
    `${duration(oldest.waiting_seconds)} for ${named(oldest.waiting_for)}${more}.`)];
}

function titled(job) {
  // A process may have two parts of a job: as the relay of its host, and as an aggregator.
  return job.uplinks.length ? `${job.name} (relay)` : job.name;
}

function uplinkRow(uplink) {
  const state = uplink.state === "connected" ? uplink.state : [uplink.state, "bad"];
  return [uplink.address, state, uplink.way, bytes(uplink.sent_bytes), bytes(uplink.received_bytes), uplink.outstanding_shards];
}

function workerRow(worker) {
  const state = ["vanished", "lost"].includes(worker.state) ? [worker.state, "bad"] : worker.state;
  const behind = worker.behind_seconds >= 1 ? [duration(worker.behind_seconds), "warn"] : duration(worker.behind_seconds);
  return [ranks(worker.ranks), state, behind, duration(worker.last_heard_seconds), bytes(worker.received_bytes),
    bytes(worker.sent_bytes), worker.way, worker.address, worker.worker];
}

function showAll(job, number) {
  const all = element("button", { type: "button" }, `show ${number}`);
  all.addEventListener("click", () => { whole.add(titled(job)); refresh(); });
  return all;
}

function foremost(workers) {
  // In a large job, the workers that vanished, were lost or are waited for, sorted by rank.
  const behind = (worker) => (worker.behind_seconds >= 1 ? worker.behind_seconds : 0);
  const gone = (worker) => ["vanished", "lost"].includes(worker.state);
  return [...workers].sort((a, b) => gone(b) - gone(a) || behind(b) - behind(a) || a.rank - b.rank)
    .slice(0, ROWS_AT_FIRST).sort((a, b) => a.rank - b.rank);
}

function membership(job) {
  // An elastic job: how many members it has, who waits to join it, and how its members have changed.
  const elastic = job.elastic;
  if (!elastic) return [];
  const counts = [[elastic.losses, "loss", "losses"], [elastic.joins, "join", "joins"],
    [elastic.departures, "departure", "departures"]].map(([n, one, many]) => `, ${n} ${n === 1 ? one : many}`).join("");
  const since = elastic.changed_seconds === null ? "" : `; last change ${duration(elastic.changed_seconds)} ago`;
  const few = elastic.members < elastic.min ? `. Rounds wait: they need ${count(elastic.min, "member")}` : "";
  const parts = [element("p", elastic.members < job.num_workers ? { "class": "waits" } : {},
    `Elastic ${elastic.min}:${elastic.max}: ${count(elastic.members, "member")}${counts}${since}${few}.`)];
  for (const one of elastic.candidates) {
    parts.push(element("p", { "class": "waits" }, `${one.worker || "An unnamed process"} has waited ` +
      `${duration(one.waiting_seconds)} to join as rank ${one.rank}.`));
  }
  if (elastic.events.length) {
    const events = whole.has(titled(job)) ? elastic.events : elastic.events.slice(0, CHANGES_AT_FIRST);
    const title = events.length < elastic.events.length
      ? `Members: the latest ${events.length} of ${elastic.events.length} changes` : "Members: changes";
    parts.push(element("h4", {}, title), element("div", { "class": "scroll" }, table(
      [["change"], ["rank", "number"], ["ago", "number"], ["how", "wraps"]],
      events.map((e) => [e.change === "lost" ? [e.change, "bad"] : e.change, e.rank, duration(e.seconds_ago), e.text]), true)));
    if (events.length < elastic.events.length) parts.push(showAll(job, elastic.events.length));
  }
  return parts;
}

function jobBody(job) {
  const parts = [...waits(job), ...membership(job)];
  if (job.not_joined.length) parts.push(element("p", { "class": "waits" }, `Not joined yet: ${named(job.not_joined)}.`));
  const shown = whole.has(titled(job)) ? job.workers : foremost(job.workers);
  const title = shown.length < job.workers.length ? `Workers: ${shown.length} of ${job.workers.length}` : "Workers";
  parts.push(element("h4", {}, title), element("div", { "class": "scroll" }, table(
    [["rank", "number"], ["state"], ["behind", "number"], ["last heard", "number"], ["received", "number"],
      ["sent", "number"], ["way"], ["address", "wide"], ["runs at", "wide"]], shown.map(workerRow), true)));
  if (shown.length < job.workers.length) parts.push(showAll(job, job.workers.length));
  if (job.uplinks.length) {
    parts.push(element("h4", {}, "Forwards to"), element("div", { "class": "scroll" }, table(
      [["address", "wide"], ["state"], ["way"], ["sent", "number"], ["received", "number"], ["shards under way", "number"]],
      job.uplinks.map(uplinkRow), true)));
  }
  if (job.rounds.length) {
    const rounds = whole.has(titled(job)) ? job.rounds : job.rounds.slice(0, ROUNDS_AT_FIRST);
    const title = job.rounds_waiting > rounds.length
      ? `Rounds in progress: the oldest ${rounds.length} of ${job.rounds_waiting}` : "Rounds in progress";
    parts.push(element("h4", {}, title), element("div", { "class": "scroll" }, table(
      [["key", "wide"], ["shard", "number"], ["round", "number"], ["has waited", "number"], ["for", "wraps"]],
      rounds.map((r) => [keyed(r), r.shard, r.round, duration(r.waiting_seconds),
        r.waiting_for.length ? named(r.waiting_for) : "an aggregator"]), true)));
    if (rounds.length < job.rounds.length) parts.push(showAll(job, job.rounds.length));
  }
  return element("div", { "class": "body" }, ...parts);
}

function jobCard(job, open) {
  const connected = job.workers.filter((worker) => worker.state === "connected")
    .reduce((sum, worker) => sum + worker.ranks.length, 0);
  const summary = element("summary", {}, element("h3", {}, titled(job)), element("span", { "class": "faint" },
    ` ${connected} of ${count(job.num_workers, "worker")}, ${count(job.keys, "key")}, ${count(job.rounds_completed, "round")} done, ` +
    `${job.rounds_waiting} in progress, holds ${bytes(job.held_bytes)}${rates.get(titled(job)).text}`));
  const card = element("details", { "class": "job", "data-job": titled(job) }, summary);
  card.open = opened.has(titled(job)) ? opened.get(titled(job)) : open;
  if (card.open) card.append(jobBody(job));
  summary.addEventListener("click", () => {
    opened.set(titled(job), !card.open);
    if (!card.open && card.children.length === 1) card.append(jobBody(job));
  });
  return card;
}

function show(report) {
  const aggregator = report.aggregator;
  const now = performance.now();
  byId("where").textContent = aggregator.addresses.join(", ");
  document.title = `psum ${aggregator.addresses[0] || "aggregator"}`;
  byId("throughput").replaceChildren(chart(report.throughput));
  byId("attention").replaceChildren(...attention(report));
  byId("facts").replaceChildren(...facts(aggregator, report));
  const none = element("p", { "class": "none" }, "No job is in progress.");
  rates = new Map(report.jobs.map((job) => [titled(job), rateOf(job, now)]));
  const cards = report.jobs.map((job, i) => jobCard(job, i < 3));
  const focused = document.activeElement?.closest(".job")?.dataset.job;
  byId("jobs").replaceChildren(...(cards.length ? cards : [none]));
  cards.find((card) => card.dataset.job === focused)?.querySelector("summary").focus();
  byId("ended-section").hidden = !report.ended.length;
  byId("ended").replaceChildren(table([["job", "wide"], ["workers", "number"], ["ended", "number"], ["how", "wide"]],
    report.ended.map((job) => [job.name, `${job.joined} of ${job.num_workers}`, `${duration(job.ended_seconds)} ago`,
      job.failure ? [job.failure, "bad"] : "well"]), true));
  const changed = new Set(aggregator.settings_changed);
  byId("settings").replaceChildren(table([["setting"], ["value", "wide"]], Object.entries(aggregator.settings_text)
    .map(([name, text]) => (changed.has(name) ? [[name, "changed"], [text, "changed"]] : [name, [text, "faint"]]))));
}

function say(text, bad, stale = false) {
  const state = byId("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = bad ? "bad" : "";
  document.body.classList.toggle("stale", stale);
}

let timer = 0;
let refreshing = false;
let incarnation = "";
let answered = 0;
let restarts = 0;           // How often the aggregator was restarted while the page was open.

async function refresh() {
  // Only one refresh at a time: each schedules the next one, so two would go on side by side.
  if (refreshing) return;
  refreshing = true;
  clearTimeout(timer);
  try {
    const response = await fetch("api/status", { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const report = await response.json();
    const restarted = incarnation && incarnation !== report.aggregator.incarnation;
    incarnation = report.aggregator.incarnation;
    answered = Date.now();
    if (restarted) { rates.clear(); restarts += 1; }
    show(report);
    const since = report.aggregator.uptime_seconds;
    if (report.aggregator.draining) say("shutting down: finishing open rounds", true);
    else say(restarts && since < 60 ? "serving again after a restart" : "serving", false);
  } catch (error) {
    const since = answered ? ` for ${duration((Date.now() - answered) / 1000)}; the data below is from that time` : "";
    say(`no answer${since}; trying again`, true, true);
  }
  refreshing = false;
  timer = setTimeout(refresh, document.hidden ? HIDDEN_REFRESH_MS : REFRESH_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
