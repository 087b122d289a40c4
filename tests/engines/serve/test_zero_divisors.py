"""A feature of 0 divides by 1 in its row; other rows and other requests of the call keep their scores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from engines import Ranker
from engines.cli.main import main
from engines.serve.score_request import Scored, ScoreRequest
from graphs.trace.factory import load_factory
from tests.engines.serve.core.jobs import PATIENCE, Blocked
from tests.engines.serve.core.test_shared_calls import with_plan
from tests.engines.serve.oip.local_server import LocalServer, binary_body, json_body, load, serving

pytestmark = pytest.mark.slow  # it builds a bundle
Arrays = Mapping[str, NDArray[np.generic]]
FILE = """
import torch
from torch import nn

class Divided(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rest = nn.Embedding(53, 16), nn.Embedding(53, 16)
        self.user, self.item, self.out = nn.Linear(16, 16), nn.Linear(5, 16), nn.Linear(32, 1)

    def forward(self, user_id, bucket, key, spread, genres):
        row = torch.div(user_id, bucket, rounding_mode="floor") % 53
        left, rest = torch.div(key, spread, rounding_mode="trunc") % 53, (key % spread) % 53
        user = torch.relu(self.user(self.table(row)))
        item = torch.relu(self.item(genres) + self.rest(left) + self.table(rest))
        return self.out(torch.cat([user, item], dim=1))[:, 0]

def make():
    torch.manual_seed(7)
    one = torch.ones(2, dtype=torch.int64)
    return Divided().eval(), (one, one, one, one, torch.randn(2, 5))
"""
RECIPE = """model: divided
quantization: {scheme: absmax}
serving: {candidates: [1, 9], max_candidates: 64, max_users: 4, compile_for: [], precision: {user: fp32, item: fp32}}
gates: {auc_change: 1.0, fraction_of_limit: 0.0, sqnr_db: 10.0, kendall_tau: 0.5, max_probability: 0.5}
"""
SIDES = ("--user", "user_id,bucket", "--item", "key,spread,genres")
BOUND = 1e-5  # FP32 sums of 32 terms of about 1, in another order
#: (the user's divisor, the candidates'): none is 0, each side, one candidate among others, all.
DIVISORS = ((5, (3, -7, 2)), (0, (3, 1, 2)), (-4, (0, 3, 7)), (0, (0, 0, 9)), (0, (0, 0, 0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("divided")
    (made / "model.py").write_text(FILE)
    (made / "recipe.yaml").write_text(RECIPE)
    return made


def build(folder: Path, *more: str) -> str:
    """Build into ``folder/bundle`` and return what was said; the exit status must be right."""
    argv = ["build", f"{folder / 'model.py'}:make", *SIDES, "--recipe", str(folder / "recipe.yaml"), "--no-cache"]
    done = CliRunner().invoke(main, [*argv, "--out", str(folder / "bundle"), *more])
    assert done.exit_code == (2 if more else 0), done.output
    return done.output


@pytest.fixture(scope="module")
def divided(folder: Path) -> Path:
    build(folder)
    return folder / "bundle"


def example(divisors: tuple[int, tuple[int, ...]], seed: int) -> ScoreRequest:
    rng, (bucket, spread) = np.random.default_rng(seed), divisors
    ids = rng.integers(-(10**12), 10**12, 1 + len(spread))
    user = {"user_id": ids[:1], "bucket": np.array([bucket])}
    genres = rng.standard_normal((len(spread), 5)).astype(np.float32)
    return ScoreRequest(user, {"key": ids[1:], "spread": np.array(spread), "genres": genres})


def wanted(folder: Path, request: ScoreRequest) -> NDArray[np.generic]:
    """What PyTorch gives with 1 in the place of every 0."""
    module, _ = load_factory(f"{folder / 'model.py'}:make")
    feeds = {**request.user, **request.items}
    rows = len(request.items["key"])
    whole = {name: torch.from_numpy(np.broadcast_to(v, (rows, *v.shape[1:])).copy()) for name, v in feeds.items()}
    for name in ("bucket", "spread"):
        whole[name] = whole[name].masked_fill(whole[name] == 0, 1)
    with torch.no_grad():
        return np.asarray(module(**whole))


def test_ranker_alone_and_in_a_shared_call(folder: Path, divided: Path) -> None:
    requests = [example(divisors, seed) for seed, divisors in enumerate(DIVISORS[:4])]
    with Ranker.from_bundle(divided) as ranker:
        assert ranker.max_users == 4
        alone = [ranker.score(request.user, request.items)["output"] for request in requests]
    with Ranker.from_bundle(divided) as fresh:  # no state is cached: the users share a call too
        shared = fresh.score_requests(requests)
    for request, one, joined in zip(requests, alone, shared, strict=True):
        assert isinstance(joined, Scored)
        np.testing.assert_allclose(one, wanted(folder, request), rtol=0, atol=BOUND)
        np.testing.assert_allclose(joined.scores["output"], one, rtol=0, atol=BOUND)


@pytest.mark.parametrize("binary", [False, True])
def test_over_http_alone_and_in_a_shared_call(folder: Path, divided: Path, binary: bool) -> None:
    requests = [example(divisors, seed) for seed, divisors in enumerate(DIVISORS)]
    with serving(divided, ready=False, workers=1) as server:
        server.context.slot.switch(with_plan(load(divided, name="divided"), 4, 3))
        server.context.lifecycle.change("ready")

        def send(request: ScoreRequest) -> tuple[int, dict[str, Any]]:
            tensors: Arrays = {**request.user, **request.items}
            body, end = binary_body(tensors) if binary else (json_body(tensors), None)
            return server.infer(body, end, model="divided")

        alone = [send(request) for request in requests]
        held = Blocked()  # keeps the worker until the others wait, and shares its call with them
        held.job.request = requests[3]
        server.context.scheduler.submit(held.job)
        assert held.entered.wait(PATIENCE)
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(send, request) for request in requests[:3]]
            wait_for(server, 3)
            held.released.set()
            shared = [one.result(PATIENCE) for one in waiting]
        assert server.bugs == []
    for request, (status, answer) in zip((*requests, *requests[:3]), (*alone, *shared), strict=True):
        assert status == 200, answer
        np.testing.assert_allclose(answer["arrays"]["output"], wanted(folder, request), rtol=0, atol=BOUND)
    assert [answer["parameters"]["batch_users"] for _, answer in (*alone, *shared)] == [1] * 5 + [4] * 3


def wait_for(server: LocalServer, waiting: int) -> None:
    until = time.monotonic() + PATIENCE
    while server.context.scheduler.waiting < waiting:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_openvino_divides_in_float32_so_it_is_refused(folder: Path, divided: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'ugsep[openvino]'")
    before = (divided / "manifest.json").read_bytes()
    said = build(folder, "--set", "serving.backend=openvino")
    assert "'openvino' computes " in said.splitlines()[-1]
    assert (divided / "manifest.json").read_bytes() == before
