"""The page of a whole server, as 'ugsep serve' starts it, in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.fixtures import read_fixtures
from engines.serve.observe.log import make_log
from engines.serve.server import RunningServer, start
from engines.serve.settings import ServeSettings
from tests.engines.serve.page.browser import CHROMIUM, Browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install Debian's package 'chromium'"),
]


@pytest.fixture
def server(built_bundle: Path) -> Iterator[RunningServer]:
    log, _ = make_log(io.StringIO(), False, 0.0)
    started = start(ServeSettings(built_bundle, http_port=0, grpc_port=None, drain_seconds=0.0), log)
    yield started
    started.stop()


def test_every_fixture_gets_the_logits_of_the_build(server: RunningServer, built_bundle: Path) -> None:
    fixtures = read_fixtures(built_bundle).requests
    with Browser() as browser:
        browser.open(f"{server.url}/")
        browser.wait(f"document.querySelectorAll('.choice').length === {len(fixtures)}")
        assert "Pick a fixture of the bundle" in browser.text("#try")
        for index, fixture in enumerate(fixtures):
            browser.js(f"document.querySelectorAll('.choice input')[{index}].click()")
            browser.wait(
                f"document.querySelector('#said').textContent.startsWith('{fixture.label or fixture.name}:')"
            )
            browser.wait("document.querySelector('#check-like')?.innerText.startsWith('✓ like')")
            logits = "[...document.querySelectorAll('#ranked tbody tr')].map(r => [+r.dataset.row, +r.dataset.logit])"
            shown = browser.js(logits)
            for row, logit in shown:
                assert abs(logit - float(fixture.expected["like"][row])) < 1e-4
            assert [logit for _, logit in shown] == sorted((logit for _, logit in shown), reverse=True)
        browser.js("document.querySelector('#send').click()")
        browser.wait("document.querySelector('#cached').innerText === 'user state cached'")
        assert server.context.slot.current().version in browser.text("#facts")
        browser.wait(f"document.querySelector('#tile-rate').innerText.includes('{len(fixtures) + 1} requests')")
        browser.wait("document.querySelector('#codes').innerText.includes('scored')")
        report = server.context.slot.current().report
        for gate in report["targets"]:
            assert gate["name"] in browser.text("#gates")
        assert {"≤", "≥"} <= set(browser.text("#gates"))
        state = np.sum([o.nbytes for o in server.context.slot.current().ranker.user_state(fixtures[0].user).values()])
        assert f"{state} B" in browser.text("#cache") or f"{state / 1024:.1f} KiB" in browser.text("#cache")
        assert browser.complaints() == []
        server.context.lifecycle.change("draining")
        browser.wait("document.querySelector('#banner').innerText.includes('draining')")
