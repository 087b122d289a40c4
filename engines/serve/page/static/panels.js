// The panels that show /status; each is drawn again only if its part of the status changed.
import { recent, tile } from "./charts.js";
import { bar, byId, bytes, clock, count, digits, duration, el, empty, facts, fill, ms, percent, scientific, table } from "./dom.js";

const drawn = new Map();

/** Draw a panel unless it already shows this data: selections and scroll positions survive. */
function panel(id, data, draw) {
  const now = JSON.stringify(data ?? null);
  if (drawn.get(id) === now) return;
  drawn.set(id, now);
  fill(byId(id), draw(data));
}

const badge = (words, className = "") => el("li", { className: `badge ${className}` }, words);
const STATES = { ready: "good", loading: "wait", draining: "wait" };

function header(status) {
  const model = status.model ?? {};
  byId("model").textContent = model.name || "no bundle yet";
  document.title = `${model.name || "ugsep"}: ${model.state || "unknown"}`;
  panel("facts", [model, status.process?.uptime_seconds && Math.floor(status.process.uptime_seconds / 60)], () => [
    model.version ? ["version ", el("code", {}, model.version), " · "] : null,
    model.backend ? `${model.backend} · user ${model.precision?.user}, item ${model.precision?.item} · ` : null,
    model.loaded_at ? ["loaded ", clock(model.loaded_at), " · "] : null,
    `up ${duration(status.process?.uptime_seconds)}`,
  ].flat());
  panel("badges", [model.state, model.passed, model.synthetic], () => [
    badge(model.state || "unknown", STATES[model.state] ?? "bad"),
    model.passed === true ? badge("all gates passed", "good") : null,
    model.passed === false ? badge("a gate failed", "bad") : null,
    model.synthetic ? badge("synthetic weights", "wait") : null,
  ]);
}

function live(status) {
  const traffic = status.traffic ?? {}, cache = status.cache ?? {}, queue = status.queue ?? {};
  const history = traffic.history ?? [];
  const window = `last ${count(traffic.window_seconds)} s`;
  const quiet = !traffic.requests;
  tile(byId("tile-rate"), {
    value: digits(traffic.per_second ?? 0), unit: "/s", format: digits,
    note: quiet ? "no traffic yet: try a request below" : `${count(traffic.requests)} requests since the start`,
    series: [{ name: "requests/s", values: recent(history, "per_second"), className: "a" }],
  });
  tile(byId("tile-latency"), {
    value: digits(traffic.p50_ms), unit: "ms p50", format: ms, note: typeof traffic.p99_ms === "number" ? `p99 ${ms(traffic.p99_ms)} over the ${window}` : "nothing scored in the last minute",
    series: [{ name: "p50", values: recent(history, "p50_ms"), className: "a" },
             { name: "p99", values: recent(history, "p99_ms"), className: "b" }],
  });
  tile(byId("tile-cache"), {
    value: cache.hits + cache.misses > 0 ? percent(cache.hit_ratio) : "–", format: percent, top: 1,
    note: `${count(cache.hits)} hits, ${count(cache.misses)} misses since the start`,
    series: [{ name: "hit ratio", values: recent(history, "hit_ratio"), className: "a" }],
  });
  const node = byId("tile-queue");
  const full = queue.limit ? queue.waiting / queue.limit : 0;
  fill(node, node.querySelector("h3"),
    el("p", { className: "figure" }, el("b", {}, count(queue.waiting)), el("span", {}, ` of ${count(queue.limit)} waiting`)),
    bar(full, `${percent(full)} of the queue is used`, full > 0.8 ? "bad" : ""),
    el("p", { className: "figure second" }, el("b", {}, count(queue.running)), el("span", {}, ` running, ${count(queue.workers)} worker${queue.workers === 1 ? "" : "s"}`)),
    el("p", { className: "soft small note" }, full > 0.8 ? "nearly full: further requests get 429" : "a full queue answers 429"));
}

const STAGES = [["queue", "waiting for a worker"], ["user", "graph, once per user"], ["item", "graph, all candidates"], ["total", "whole request"]];

function stages(traffic) {
  const found = STAGES.filter(([name]) => typeof traffic?.[name]?.p50_ms === "number");
  if (!found.length) return empty("No requests in the last minute.");
  const most = Math.max(...found.map(([name]) => traffic[name].p99_ms || 0)) || 1;
  return table("Time per stage", [["stage"], ["p50", true], ["p99", true], [""]], found.map(([name, words]) => [
    [el("b", {}, name), " ", el("span", { className: "soft small" }, words)],
    ms(traffic[name].p50_ms), ms(traffic[name].p99_ms),
    el("span", { className: "pair" }, bar(traffic[name].p50_ms / most, "", "a"), bar(traffic[name].p99_ms / most, "", "b")),
  ]));
}

function cache(state) {
  if (!state) return empty("No bundle is loaded.");
  const share = state.limit ? state.bytes / state.limit : 0;
  // A user takes the state and the features it was computed from, so what is held says more than the state alone.
  const each = state.users ? state.bytes / state.users : state.state_bytes_per_user;
  const room = each ? Math.floor(state.limit / each) : null;
  return [
    bar(share, `${percent(share)} of the cache is used`),
    facts([
      ["filled", `${bytes(state.bytes)} of ${bytes(state.limit)} (${percent(share)})`],
      ["users held", room ? `${count(state.users)}, room for ${count(room)}` : count(state.users)],
      ["state per user", bytes(state.state_bytes_per_user)],
      ["hits, misses", `${count(state.hits)}, ${count(state.misses)}`],
      ["evictions", count(state.evictions)],
    ]),
  ];
}

const misses = (found) => !found?.length
  ? empty("Nothing to report. If a user who was seen before misses the cache, this lists the features that changed.")
  : [table("Features that changed between two misses of one user", [["user feature"], ["changed in", true], [""], ["misses", true]],
      found.map((m) => [el("code", {}, m.feature), percent(m.share), bar(m.share, "", "b"), count(m.count)])),
    el("p", { className: "soft small" }, "A feature near 100 %, such as a timestamp, keeps states from being reused.")];

const CODES = { 200: "scored", 400: "bad input", 404: "unknown", 413: "body too large", 429: "queue full", 500: "our bug", 503: "not ready", 504: "deadline passed" };

function codes(found) {
  const all = Object.entries(found ?? {}).filter(([, n]) => n > 0);
  if (!all.length) return empty("No requests in the last minute.");
  const most = Math.max(...all.map(([, n]) => n));
  return table("Answers by status code", [["code"], ["", false], ["answers", true], [""]], all.map(([code, n]) => [
    el("code", {}, code), CODES[code] ?? "", count(n), bar(n / most, "", code.startsWith("2") || code === "OK" ? "good" : "bad")]));
}

/** How a value must relate to its bound, if the report says it. */
const relation = (g) => ({ "<=": "≤ ", ">=": "≥ " })[g.relation] ?? "";

const gates = (found) => !found?.length ? empty("This bundle has no gates.") : table("Gates",
  [["gate"], ["value", true], ["bound", true], ["result"]],
  found.map((g) => [g.name, scientific(g.value), `${relation(g)}${scientific(g.bound)}`, el("span", { className: g.passed ? "good" : "bad" }, g.passed ? "✓ passed" : "✗ failed")]));

const useOf = (e) => e.chosen ? el("span", { className: "good" }, "serving")
  : el("span", { className: "soft" }, e.cannot_run ? `built, cannot run here: ${e.cannot_run}` : "available");

const engines = (found) => !found?.length ? empty("No engines are loaded.") : table("Engines",
  [["side"], ["backend"], ["precision"], ["size", true], [""]],
  found.map((e) => [e.side, e.backend, el("code", {}, e.precision), bytes(e.bytes), useOf(e)]));

function batching(found) {
  if (!found?.measured?.length) return empty("This bundle measured no calls of several users; every request is scored by itself.");
  const [users, candidates] = ["users", "candidates"].map((key) => [...new Set(found.measured.map((m) => m[key]))].sort((a, b) => a - b));
  const cell = (u, c) => {
    const speedup = found.measured.find((m) => m.users === u && m.candidates === c)?.speedup;
    return speedup === undefined ? el("span", { className: "soft", title: "not measured" }, "–")
      : el("span", { className: speedup > 1 ? "good" : "soft" }, `${digits(speedup)}×`);
  };
  return [el("p", { className: "soft small" }, `Speed-up over one call per user, by users and candidates of each, measured by the build; at most ${count(found.max_users)} users share a call.`),
    table("Speed-up of one call for several users", [["users"], ...candidates.map((c) => [`${count(c)} item${c === 1 ? "" : "s"}`, true])],
      users.map((u) => [count(u), ...candidates.map((c) => cell(u, c))]))];
}

function swaps([found, model, previous]) {
  const kept = previous ? el("p", {}, "Kept for ", el("code", {}, "ugsep rollback"), ": ", el("code", {}, previous.version), ", loaded ", clock(previous.loaded_at)) : null;
  if (!found?.length) return [kept, empty(model?.version ? `${model.version} has served since the start.` : "No bundle is loaded.")];
  return [kept, el("ol", { className: "swaps" }, found.map((s) => el("li", {},
    clock(s.at), " ", el("span", { className: s.outcome === "serving" ? "good" : s.outcome === "refused" ? "bad" : "warn" }, s.outcome), " ",
    el("code", {}, s.from ?? "nothing"), " → ", el("code", {}, s.to ?? "unknown"),
    typeof s.seconds === "number" ? el("span", { className: "soft" }, ` in ${digits(s.seconds)} s`) : null,
    s.reason ? el("p", { className: "soft small" }, s.reason) : null)))];
}

const processFacts = (state) => facts([
  ["memory (RSS)", bytes(state?.rss_bytes)], ["uptime", duration(state?.uptime_seconds)],
  ["descriptors", count(state?.descriptors)], ["threads", count(state?.threads)],
]);

/** Show one answer of /status. */
export function show(status) {
  header(status);
  live(status);
  panel("stages", status.traffic?.stages, stages);
  panel("cache", status.cache, cache);
  panel("misses", status.misses, misses);
  panel("codes", status.traffic?.codes, codes);
  panel("gates", status.gates, gates);
  panel("engines", status.engines, engines);
  panel("batching", status.batching, batching);
  panel("swaps", [status.swaps, status.model, status.previous], swaps);
  panel("process", status.process, processFacts);
}
