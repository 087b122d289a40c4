// The request panel: examples of the server, sent as Open Inference Protocol requests like any other client's.
import { bar, byId, count, digits, el, empty, facts, fill, ms, percent, scientific } from "./dom.js";

const FIRST = 100; // rows shown at once
let listed = null, chosen = -1, task = null, sending = 0, protocolOpen = false;
const bodies = new Map();

/** Ask for the requests that fit the bundle which serves now. */
export async function loadChoices() {
  const answer = await fetch("examples.json");
  if (!answer.ok) throw new Error(`examples ${answer.status}`);
  const fresh = await answer.json();
  const same = listed && JSON.stringify(fresh.requests) === JSON.stringify(listed.requests);
  listed = fresh;
  byId("send").disabled = !listed.requests.length;
  byId("source").textContent = listed.note;
  if (same) return;
  bodies.clear();
  chosen = -1;
  task = null;
  byId("pick-title").textContent = listed.source === "examples" ? "Pick a user" : "Pick a fixture of the bundle";
  byId("filter").hidden = listed.requests.length < 9;
  fill(byId("choices"), listed.requests.map(choice));
  fill(byId("result"), empty("Pick a request to see its candidates in the order the model ranks them."));
}

function choice(request, index) {
  const likes = Object.entries(request.labels).map(([name, values]) => `${count(values.filter((v) => v > 0).length)} × ${name}`);
  const about = [`${count(request.candidates)} candidate${request.candidates === 1 ? "" : "s"}`,
    request.users > 1 ? `${count(request.users)} users` : null, ...likes].filter(Boolean).join(", ");
  const input = el("input", { type: "radio", name: "request", value: String(index), onchange: () => send(index) });
  return el("label", { className: "choice", "data-name": request.label.toLowerCase() }, input,
    el("span", {}, el("b", {}, request.label), el("span", { className: "soft small" }, about)));
}

byId("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase();
  for (const label of byId("choices").children) label.hidden = !label.dataset.name.includes(words);
});

byId("pick").addEventListener("submit", (event) => {
  event.preventDefault();
  const picked = byId("choices").querySelector("input:checked") ?? byId("choices").querySelector("label:not([hidden]) input");
  if (!picked) return;
  picked.checked = true;
  send(Number(picked.value));
});

const address = (path) => new URL(path, document.baseURI).href.replaceAll("'", "%27");

async function send(index) {
  const request = listed.requests[index], turn = ++sending;
  if (index !== chosen) task = null;
  chosen = index;
  const result = byId("result");
  result.setAttribute("aria-busy", "true");
  try {
    if (!bodies.has(index)) bodies.set(index, await load(request.body));
    const begun = performance.now();
    const answer = await fetch(listed.infer, {
      method: "POST", body: bodies.get(index), cache: "no-store",
      headers: { "content-type": "application/json", "x-user-key": `page-${index}` },
    });
    const text = await answer.text();
    const took = performance.now() - begun;
    if (turn !== sending) return;
    const parsed = parse(text);
    if (!answer.ok) fill(result, refusal(answer, parsed, text), protocol(request, text));
    else draw(result, request, parsed, took, text);
  } catch (error) {
    if (turn === sending) fill(result, el("p", { className: "alert", role: "alert" }, `The request failed: ${error.message}.`));
  } finally {
    if (turn === sending) result.setAttribute("aria-busy", "false");
  }
}

async function load(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`the server no longer has this request (${answer.status})`);
  return answer.text();
}

function parse(text) {
  try { return JSON.parse(text); } catch { return null; }
}

function refusal(answer, parsed, text) {
  const retry = answer.headers.get("retry-after");
  return el("p", { className: "alert", role: "alert" }, el("b", {}, `${answer.status} `),
    parsed?.error ?? (text.slice(0, 300) || answer.statusText), retry ? ` Try again in ${retry} s.` : "");
}

function draw(result, request, answer, took, text) {
  const scores = new Map(answer.outputs.map((o) => [o.name, o.data.flat(Infinity)]));
  if (!scores.has(task)) task = answer.outputs[0].name;
  const show = (all) => fill(result,
    summary(request, answer, took), timing(answer.parameters ?? {}, took), check(request, scores),
    scores.size > 1 ? tasks([...scores.keys()], () => show(all)) : null,
    ranking(request, scores.get(task), all ? Infinity : FIRST, () => show(true)), protocol(request, text));
  show(false);
  const cached = answer.parameters?.user_cached === true;
  byId("said").textContent = `${request.label}: ${count(request.candidates)} candidates ranked in ${ms(took)}, user state ${cached ? "cached" : "computed"}`;
}

function summary(request, answer, took) {
  const given = answer.parameters ?? {};
  const cached = given.user_cached === true;
  return el("ul", { className: "badges" },
    el("li", { className: `badge ${cached ? "good" : "wait"}`, id: "cached" }, cached ? "user state cached" : "user state computed"),
    el("li", { className: "badge" }, "version ", el("code", {}, answer.model_version ?? "?")),
    el("li", { className: "badge" }, `${ms(took)} round trip`),
    given.batch_users > request.users ? el("li", { className: "badge" }, `scored in one call with ${count(given.batch_users - request.users)} more users`) : null);
}

/** Where the time of this request went, to scale. */
function timing(given, took) {
  const parts = [["queue", "waiting in the queue", given.queue_us / 1000], ["user", "user graph", given.user_us / 1000], ["item", "item graph", given.item_us / 1000]]
    .filter(([, , value]) => Number.isFinite(value));
  if (!parts.length) return null;
  const rest = Math.max(0, took - parts.reduce((sum, [, , value]) => sum + value, 0));
  parts.push(["rest", "JSON, network, browser", rest]);
  const whole = parts.reduce((sum, [, , value]) => sum + value, 0) || 1;
  const strip = el("div", { className: "strip", role: "img", "aria-label": parts.map(([, words, value]) => `${words} ${ms(value)}`).join(", ") },
    parts.map(([name, , value]) => {
      const part = el("span", { className: name });
      part.style.width = `${(100 * value) / whole}%`;
      return part;
    }));
  return el("div", { className: "timing" }, strip, facts(parts.map(([name, words, value]) => [
    el("span", { className: `key ${name}` }, words), name === "user" && given.user_cached ? `${ms(value)} (cached)` : ms(value)])));
}

/** How far two FP32 numbers are apart, whatever decimals they were written with. */
const difference = (a, b) => Math.abs(Math.fround(a) - Math.fround(b));

/** Compare with the logits that the build expects. */
function check(request, scores) {
  const worst = Object.entries(request.expected).map(([name, values]) => {
    const got = scores.get(name) ?? [];
    const apart = values.map((v, i) => difference(v, got[i]));
    return [name, apart.every(Number.isFinite) ? Math.max(...apart) : NaN, listed.tolerances[name] ?? 0];
  });
  return worst.map(([name, apart, bound]) => {
    const good = apart <= bound;
    return el("p", { className: good ? "good" : "bad", id: `check-${name}` },
      `${good ? "✓" : "✗"} ${name}: ${apart === 0 ? "bit-equal to the logits of the build"
        : `differs from the build by at most ${scientific(apart)}`} (tolerance ${scientific(bound)})`);
  });
}

function tasks(names, redraw) {
  const pick = (name) => { task = name; redraw(); byId("tasks")?.querySelector("[aria-pressed=true]")?.focus(); };
  return el("div", { className: "tasks", id: "tasks", role: "group", "aria-label": "Task to rank by" }, names.map((name) =>
    el("button", { type: "button", "aria-pressed": String(name === task), onclick: () => pick(name) }, name)));
}

const probability = (logit) => 1 / (1 + Math.exp(-logit));

function ranking(request, logits, limit, more) {
  const order = logits.map((_, i) => i).sort((a, b) => logits[b] - logits[a] || a - b);
  const expected = request.expected[task], labels = Object.entries(request.labels);
  const head = [["#", "n"], ["candidate", ""], ["probability", "n"], ["", "wide-only"], ["logit", "n wide-only"],
    expected ? ["difference", "n"] : null, request.users > 1 ? ["user", "n"] : null, ...labels.map(([name]) => [name, ""])].filter(Boolean);
  const rows = order.slice(0, limit).map((row, place) => el("tr", { "data-row": row, "data-logit": logits[row] }, [
    el("td", { className: "n soft" }, String(place + 1)),
    el("td", { className: "title" }, request.items[row]),
    el("td", { className: "n" }, `${(100 * probability(logits[row])).toFixed(1)} %`),
    el("td", { className: "wide-only" }, bar(probability(logits[row]), "", "a")),
    el("td", { className: "n wide-only" }, logits[row].toFixed(4)),
    expected ? el("td", { className: "n" }, scientific(difference(logits[row], expected[row]))) : null,
    request.users > 1 ? el("td", { className: "n" }, String(request.user_index[row])) : null,
    ...labels.map(([name, values]) => el("td", { className: "mark" }, mark(name, values[row]))),
  ]));
  return [
    ...labels.map(([name, values]) => agreement(name, values, order)),
    el("div", { className: "scroll ranked", tabIndex: 0, role: "region", "aria-label": "Ranked candidates" },
      el("table", { id: "ranked" },
        el("thead", {}, el("tr", {}, head.map(([title, kind]) => el("th", { scope: "col", className: kind }, title)))),
        el("tbody", {}, rows))),
    order.length > limit ? el("button", { type: "button", className: "quiet", onclick: more }, `Show all ${count(order.length)}`) : null,
  ];
}

/** What really happened with a candidate: yes or no for a label of 0 and 1, else its value. */
const mark = (name, value) => value === 1 ? el("span", { className: "good" }, `✓ ${name}`)
  : value === 0 ? el("span", { className: "soft" }, "–") : digits(value);

/** How well the order agrees with a label of zeros and ones. */
function agreement(name, values, order) {
  const yes = values.filter((v) => v === 1).length;
  if (!yes || yes === values.length || values.some((v) => v !== 0 && v !== 1)) return null;
  const top = order.slice(0, yes).filter((i) => values[i] === 1).length;
  return el("p", { className: "small soft agreement" },
    `This user really gave ${count(yes)} of ${count(values.length)} candidates "${name}"; the model ranks ${count(top)} of them in its first ${count(yes)} (chance: ${percent(yes / values.length)}).`);
}

function protocol(request, text) {
  const command = `curl -s '${address(request.body)}' |\n  curl -s '${address(listed.infer)}' -H 'content-type: application/json' --data-binary @-`;
  const copied = el("button", { type: "button", className: "quiet" }, "Copy");
  copied.onclick = async () => {
    try {
      await navigator.clipboard.writeText(command);
      copied.textContent = "Copied";
    } catch { copied.textContent = "Select the text to copy it"; }
  };
  const body = bodies.get(chosen) ?? "";
  const short = (whole) => (whole.length > 1500 ? `${whole.slice(0, 1500)} … (${count(whole.length)} characters)` : whole);
  return el("details", { className: "protocol", open: protocolOpen, ontoggle: (e) => { protocolOpen = e.target.open; } },
    el("summary", {}, "The same request with curl"),
    el("div", { className: "code" }, el("pre", { tabIndex: 0, id: "curl" }, command), copied),
    el("h4", {}, "Request"), el("pre", { tabIndex: 0 }, short(body)),
    el("h4", {}, "Answer"), el("pre", { tabIndex: 0 }, short(text)));
}
