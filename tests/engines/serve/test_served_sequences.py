"""A sequence model behind HTTP: its fixtures, requests as JSON and as binary, and histories that do not fit."""

from __future__ import annotations

import dataclasses
import io
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import Ranker
from engines.build.pipeline import build
from engines.build.sources import Sources
from engines.bundle.fixtures import read_fixtures
from engines.recipes.recipe import load_recipe
from engines.serve.core.replay import replay, score_alone
from engines.serve.observe.log import make_log
from engines.serve.server import start
from engines.serve.settings import ServeSettings
from tests import tiny
from tests.engines.serve.oip.local_server import PATIENCE, binary_body, json_body, read_answer
from tests.tiny import FEATURES

Arrays = dict[str, NDArray[np.generic]]
SMALL = {"width": 32, "layers": 2, "history": ["recent"], "user_tokens": 2, "tower": 8, "features": list(FEATURES)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build hstu at a small size, with FP16 state."""
    recipe = load_recipe("hstu")
    serving = dataclasses.replace(recipe.serving, candidates=(1, 9), compile_for=(), max_candidates=64, state="fp16")
    # Random weights give nearly equal logits, hence the loose bounds on agreement.
    gates = dataclasses.replace(recipe.gates, kendall_tau=0.5, sqnr_db=12.0, fraction_of_limit=0.0)
    config = {**recipe.config, **{k: v for k, v in SMALL.items() if k != "features"}}
    config["features"] = [dataclasses.asdict(f) for f in FEATURES]
    made = dataclasses.replace(recipe, config=config, serving=serving, gates=gates)
    return build("hstu", made, Sources(None), tmp_path_factory.mktemp("served") / "hstu").bundle


def request(candidates: int, seed: int, seen: int) -> tuple[Arrays, Arrays]:
    """Return a user with a history of ``seen`` items, padded with 0, and candidates."""
    user, items = tiny.user_and_items(candidates, seed)
    user["recent"][:, seen:] = 0
    return user, items


@pytest.mark.slow
def test_scores_over_http_are_those_of_the_ranker(bundle: Path) -> None:
    ranker, fixtures = Ranker.from_bundle(bundle), read_fixtures(bundle)
    assert replay(fixtures, lambda asked: score_alone(ranker, asked)).passed
    settings = ServeSettings(bundle, http_port=0, grpc_port=None, drain_seconds=0.0, watch_seconds=0.0)
    server = start(settings, make_log(io.StringIO())[0])  # replays the fixtures itself

    def answer(body: bytes, **headers: Any) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", server.http.port, timeout=PATIENCE)
        connection.request("POST", "/v2/models/hstu/infer", body, headers)
        got = connection.getresponse()
        content = got.read()
        connection.close()
        return got.status, read_answer(got.getheader("Inference-Header-Content-Length"), content)

    try:
        given = [request(candidates, seed, seen) for seed, (candidates, seen) in enumerate([(5, 5), (9, 3), (1, 0)])]
        given += [(dict(f.user), dict(f.items)) for f in fixtures.requests if f.user_index is None]
        for user, items in given:
            expected = ranker.score(user, items)
            binary, length = binary_body(
                {**user, **items}, outputs=[{"name": t, "parameters": {"binary_data": True}} for t in expected]
            )
            for status, found in (
                answer(json_body({**user, **items})),
                answer(binary, **{"Inference-Header-Content-Length": str(length)}),
            ):
                assert status == 200, found
                assert set(found["arrays"]) == set(expected)
                for task, logits in expected.items():
                    np.testing.assert_array_equal(found["arrays"][task], logits)
        longer = {**user, "recent": np.concatenate([user["recent"]] * 2, axis=1)}
        status, found = answer(json_body({**longer, **items}))
        assert status == 400
        assert "'recent'" in found["error"]
        assert "\n" not in found["error"]
    finally:
        server.stop()
        ranker.close()


@pytest.mark.slow
def test_padding_and_the_history_count(bundle: Path) -> None:
    with Ranker.from_bundle(bundle) as ranker:
        user, items = request(9, 4, seen=3)
        before = ranker.score(user, items)["like"]
        other = {**user, "recent": user["recent"] % 60 + 1}
        other["recent"][:, 3:] = 0
        assert np.abs(ranker.score(other, items)["like"] - before).max() > 1e-4
        assert ranker.cache_info().misses == 2
        np.testing.assert_array_equal(ranker.score(user, items)["like"], before)
        assert ranker.cache_info().hits == 1
