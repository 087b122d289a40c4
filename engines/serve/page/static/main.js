// Ask /status each second and show it; say so if nobody answers.
import { byId } from "./dom.js";
import { show } from "./panels.js";
import { loadChoices } from "./try.js";

const EVERY = 1000, PATIENCE = 4000, SLOWEST = 8000; // milliseconds
let failures = 0, version = null;

function banner(words) {
  const node = byId("banner");
  if (node.textContent !== words) node.textContent = words;
  node.hidden = !words;
  document.body.classList.toggle("gone", failures > 0);
}

const NOTICES = {
  loading: "The server is loading its bundle: requests are answered with 503 until it is ready.",
  draining: "The server is draining: it finishes what it has and takes no further requests.",
};

async function poll() {
  let wait = EVERY;
  try {
    const answer = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const status = await answer.json();
    failures = 0;
    show(status);
    banner(NOTICES[status.model?.state] ?? "");
    byId("polled").textContent = `updated ${new Date().toLocaleTimeString("en-GB")}`;
    const now = status.model?.version ?? null;
    if (now !== version && status.model?.state === "ready") {
      version = now;
      await loadChoices();
    }
  } catch (error) {
    failures += 1;
    version = null; // the requests are asked for again once the server is back
    wait = Math.min(SLOWEST, EVERY * 2 ** Math.min(failures - 1, 4));
    const why = error.name === "TimeoutError" ? `no answer in ${PATIENCE / 1000} s` : error instanceof TypeError ? "no connection" : error.message;
    banner(`The server does not answer (${why}). What you see is from before; trying again every ${Math.round(wait / 1000)} s.`);
  }
  setTimeout(poll, wait);
}

poll();
