"""The page in a real headless Chromium: what it shows, how it fails, and that no name becomes markup."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.fixture_file import Fixture, Fixtures, save_fixtures
from engines.serve.ranker import Ranker
from tests import tiny
from tests.engines.serve.page.browser import CHROMIUM, Browser
from tests.engines.serve.page.page_server import PageServer, Running, page_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install Debian's package 'chromium'"),
]
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&amp;\"'"
PICK = "document.querySelectorAll('.choice input')[{}].click()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def example(seed: int, candidates: int, ranker: Ranker | None = None, label: str = "") -> Fixture:
    user, items = tiny.user_and_items(candidates, seed)
    items["item_id"] = 1 + np.arange(candidates) % 60
    expected = ranker.score(user, items) if ranker else {}
    likes = {"like": (np.arange(candidates) % 3 == 0).astype(np.float32)}
    return Fixture(f"user-{seed}", user, items, expected=expected, label=label or f"User {seed}", labels=likes)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    titles = {str(i): f"Film {i} (1999)" for i in range(1, 60)}
    made = Fixtures(tuple(example(seed, 12 + seed) for seed in range(10)), names={"item_id": titles})
    save_fixtures(folder, "examples", made)
    return folder


@pytest.fixture(scope="module")
def server(built_bundle: Path, examples: Path) -> PageServer:
    return page_server(built_bundle, examples)


@pytest.fixture
def page(server: PageServer) -> Iterator[Running]:
    running = Running(server.app())
    yield running
    running.close()


def shown(browser: Browser) -> list[tuple[int, float]]:
    """Return the ranked rows: candidate and logit."""
    rows = "[...document.querySelectorAll('#ranked tbody tr')].map(r => [+r.dataset.row, +r.dataset.logit])"
    return [(row, logit) for row, logit in browser.js(rows)]


def test_it_shows_the_status_and_asks_nobody_else(browser: Browser, page: Running) -> None:
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    text = browser.text()
    for words in (
        "tiny",
        "ready",
        "35.9 /s",
        "1.73 ms p50",
        "89 %",
        "3 of 64 waiting",
        "room for 2,600",  # 25,805 bytes each: the state and its features, as the cache counts
        "clock",
    ):
        assert words in text
    for words in ("33.9", "✗ failed", "2.81×", "refused", "differs by 0.4", "230.0 MiB", "87 min", "available",
                  "built, cannot run here: no NVIDIA driver or GPU found"):  # fmt: skip
        assert words in text
    assert browser.js("document.title") == "tiny: ready"
    assert browser.complaints() == []
    assert {url.removeprefix(page.url).split("/")[0] for url in browser.requested()} == {
        "", "page", "status", "examples.json",
    }  # fmt: skip


def test_a_picked_user_is_ranked_as_the_ranker_does(
    browser: Browser, page: Running, built_bundle: Path, server: PageServer
) -> None:
    server.slot.current().ranker.forget_users()
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(4))
    browser.wait("document.querySelector('#cached')?.innerText === 'user state computed'")
    wanted = example(4, 16)
    with Ranker.from_bundle(built_bundle) as ranker:
        logits = ranker.score(wanted.user, wanted.items)["like"]
    assert shown(browser) == [(int(i), float(logits[i])) for i in np.argsort(-logits, kind="stable")]
    best = int(np.argmax(logits))
    first = browser.text("#ranked tbody tr")
    assert first.startswith(f"1 Film {wanted.items['item_id'][best]} (1999) ")
    assert ("✓ like" in first) == (best % 3 == 0)
    assert "16 candidates ranked" in browser.js("document.querySelector('#said').textContent")
    browser.js("document.querySelector('#send').click()")
    browser.wait("document.querySelector('#cached')?.innerText === 'user state cached'")
    sent = server.sent[-1]
    assert all((sent[name] == value).all() for name, value in {**wanted.user, **wanted.items}.items() if name in sent)
    assert browser.complaints() == []


def test_the_shown_curl_command_gets_the_shown_scores(browser: Browser, page: Running) -> None:
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(2))
    command = str(browser.wait("document.querySelector('#curl')?.textContent"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=20)
    data = json.loads(done.stdout)["outputs"][0]["data"]
    assert dict(shown(browser)) == dict(enumerate(data))


def test_expected_logits_are_compared(
    browser: Browser, built_bundle: Path, server: PageServer, tmp_path: Path
) -> None:
    with Ranker.from_bundle(built_bundle) as ranker:
        right, wrong = example(1, 9, ranker), example(2, 9, ranker)
    wrong.expected["like"][3] += 0.5
    save_fixtures(tmp_path, "examples", Fixtures((right, wrong), {"like": 1e-5}))
    running = Running(page_server(built_bundle, tmp_path).app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 2")
    browser.js(PICK.format(0))
    browser.wait("document.querySelector('#check-like')?.innerText.includes('✓ like: bit-equal')")
    browser.js(PICK.format(1))
    browser.wait(
        "document.querySelector('#check-like')?.innerText.includes('✗ like: differs from the build by at most 0.5')"
    )
    running.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 800, 1600])
def test_nothing_runs_over_the_edge_and_text_has_contrast(
    browser: Browser, page: Running, width: int, dark: bool
) -> None:
    browser.open(page.url, width, 800, dark)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(1))
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 13")
    browser.js("document.querySelector('.protocol').open = true")
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    faint = browser.js(CONTRAST)
    assert faint == [], "text needs a contrast of 4.5 to 1"
    lightness = browser.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (lightness < 60) == dark


#: Every visible text whose colour is too close to the background behind it.
CONTRAST = """(() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = rgb(c).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    const v = rgb(c); if (v.length < 4 || v[3] === 1) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled &&
      [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
      return [e.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5);
})()"""


def test_names_never_become_markup(browser: Browser, built_bundle: Path, tmp_path: Path) -> None:
    names = {"item_id": {str(i): f"{i}{HOSTILE}" for i in range(61)}}
    save_fixtures(tmp_path, "examples", Fixtures((example(1, 9, label=HOSTILE),), names=names))
    server = page_server(
        built_bundle,
        tmp_path,
        name=HOSTILE,
        misses=[{"feature": HOSTILE, "share": 0.5, "count": 2}],
        gates=[{"name": HOSTILE, "value": 1, "bound": 2, "passed": True}],
        engines=[
            {
                "side": HOSTILE,
                "backend": HOSTILE,
                "precision": HOSTILE,
                "bytes": 1,
                "chosen": False,
                "cannot_run": HOSTILE,
            }
        ],
        swaps=[{"at": 1, "from": HOSTILE, "to": HOSTILE, "outcome": HOSTILE, "reason": HOSTILE, "seconds": 1}],
    )
    server.status["traffic"]["codes"] = {HOSTILE: 3}
    running = Running(server.app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 1")
    browser.js(PICK.format(0))
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 9")
    for place in ("h1", "#misses", "#gates", "#engines", "#swaps", "#codes", ".choice", "#ranked tbody"):
        assert HOSTILE in browser.text(place), place
    assert browser.js("[window.hacked, document.images.length, document.scripts.length]") == [None, 1, 1]
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []
    running.close()


def test_a_server_that_is_gone_is_said_and_found_again(browser: Browser, server: PageServer) -> None:
    running = Running(server.app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    assert browser.js("document.querySelector('#banner').hidden")
    running.close()
    browser.wait("!document.querySelector('#banner').hidden")
    assert "does not answer (no connection)" in browser.text("#banner")
    again = Running(server.app(), port=running.port)
    browser.wait("document.querySelector('#banner').hidden")
    browser.js(PICK.format(0))
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 12")
    again.close()


def test_states_and_empty_panels(browser: Browser, server: PageServer, built_bundle: Path, examples: Path) -> None:
    other = page_server(built_bundle, examples)
    running = Running(other.app())
    full = other.status
    for state, words in (("loading", "loading its bundle"), ("draining", "is draining")):
        other.status = {**full, "model": {**full["model"], "state": state}}
        browser.open(running.url)
        browser.wait(f"document.querySelector('#banner').innerText.includes({json.dumps(words)})")
        assert state in browser.text("#badges")
    quiet = {"requests": 0, "window_seconds": 60, "per_second": 0, "p50_ms": None, "p99_ms": None, "stages": {},
             "codes": {}, "history": []}  # fmt: skip
    other.status = {**full, "traffic": quiet, "swaps": [], "misses": [], "previous": None, "gates": [],
                    "batching": {"max_users": 0, "measured": []}}  # fmt: skip
    browser.open(running.url)
    browser.wait("document.body.innerText.includes('no traffic yet')")
    for words in (
        "No requests in the last minute",
        "Nothing to report",
        "has no gates",
        "has served since the start",
    ):
        assert words in browser.text()
    other.status = {"model": {"name": "tiny", "state": "loading"}}  # before the first bundle is loaded
    browser.open(running.url)
    browser.wait("document.querySelector('#badges').innerText.includes('loading')")
    assert browser.complaints() == []
    running.close()


def test_a_refusal_is_shown_in_one_line(browser: Browser, built_bundle: Path, examples: Path) -> None:
    busy = page_server(built_bundle, examples)
    busy.refuse = 429
    running = Running(busy.app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(0))
    browser.wait("!!document.querySelector('#result .alert')")
    assert browser.text("#result .alert") == "429 the queue is full Try again in 1 s."
    running.close()


def test_a_task_is_chosen_by_name(browser: Browser, built_bundle: Path, examples: Path) -> None:
    server = page_server(built_bundle, examples)
    server.second_task = HOSTILE
    running = Running(server.app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(3))
    browser.wait("document.querySelectorAll('#tasks button').length === 2")
    by_like = shown(browser)
    browser.js("document.querySelectorAll('#tasks button')[1].click()")
    assert shown(browser) == [(row, -logit) for row, logit in reversed(by_like)]
    assert browser.js("document.activeElement.textContent") == HOSTILE
    browser.js("document.querySelector('#send').click()")  # the task stays chosen for the same request
    browser.wait("document.querySelector('#cached').innerText === 'user state cached'")
    assert browser.text("#tasks [aria-pressed=true]") == HOSTILE
    assert browser.complaints() == []
    running.close()


def test_a_keyboard_is_enough(browser: Browser, page: Running) -> None:
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.press("Tab", 9)
    assert browser.js("document.activeElement.textContent") == "Skip to the request panel"
    browser.js("document.querySelector('#filter').focus()")
    browser.press("Tab", 9)
    browser.press(" ", 32)
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 12")
    browser.press("ArrowDown", 40)
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 13")
    browser.press("Tab", 9)
    assert browser.js("document.activeElement.id") == "send"


def test_the_filter_narrows_the_choice(browser: Browser, page: Running) -> None:
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(
        "(f => { f.value = 'user 7'; f.dispatchEvent(new Event('input')) })(document.querySelector('#filter'))"
    )
    assert browser.js("document.querySelectorAll('.choice:not([hidden])').length") == 1
    browser.js("document.querySelector('#pick').requestSubmit()")
    browser.wait("document.querySelectorAll('#ranked tbody tr').length === 19")


def test_every_control_has_a_name(browser: Browser, page: Running) -> None:
    browser.open(page.url)
    browser.wait("document.querySelectorAll('.choice').length === 10")
    browser.js(PICK.format(0))
    browser.wait("!!document.querySelector('#ranked')")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "radio", "searchbox", "link", "region", "image", "radiogroup", "heading"}
    found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    assert [role for role, name in found if role in named and not name] == []
    assert ("radiogroup", "Pick a user") in found
    assert any(role == "image" and name.startswith("Latency, last two minutes: p50 now") for role, name in found)


def test_a_new_version_brings_its_own_requests(browser: Browser, built_bundle: Path, tmp_path: Path) -> None:
    for folder, count in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        save_fixtures(tmp_path / folder, "examples", Fixtures(tuple(example(seed, 8) for seed in range(count))))
    one, two = page_server(built_bundle, tmp_path / "a"), page_server(built_bundle, tmp_path / "b")
    running = Running(one.app())
    browser.open(running.url)
    browser.wait("document.querySelectorAll('.choice').length === 2")
    running.close()
    two.status["model"]["version"] = "ffffffffffff"
    again = Running(two.app(), port=running.port)
    browser.wait("document.querySelectorAll('.choice').length === 3")
    browser.wait("document.body.innerText.includes('ffffffffffff')")
    again.close()
