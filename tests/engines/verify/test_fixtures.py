"""The fixtures that a build writes: which rows, which tolerances, and what they catch."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engines import Ranker
from engines.bundle.bundle import Bundle
from engines.bundle.fixture_file import save_fixtures
from engines.bundle.fixtures import read_fixtures
from engines.bundle.manifest import Manifest, read_manifest, write_manifest
from engines.cli.main import main
from engines.serve.core.replay import replay, score_alone
from engines.verify.fixtures import fixture_check, make_fixtures, write_fixtures
from quant.requests.spec import Request
from tests import tiny


def requests_of(sizes: list[int]) -> list[Request]:
    return [Request(i, *tiny.user_and_items(n, seed=i)) for i, n in enumerate(sizes)]


@pytest.fixture
def ranker(built_bundle: Path):  # type: ignore[no-untyped-def]
    with Ranker.from_bundle(built_bundle) as loaded:
        yield loaded


def logits(requests: list[Request], ranker: Ranker, error: float) -> list[dict[str, np.ndarray]]:
    """Scores that stand for the reference: those of the ranker, off by ``error``."""
    return [{"like": ranker.score(r.user, r.items)["like"] + np.float32(error)} for r in requests]


def test_rows_are_repeated_up_to_the_largest_size_and_reference_rows_follow(ranker: Ranker) -> None:
    requests = requests_of([2, 5, 3])
    found = make_fixtures(ranker, requests, logits(requests, ranker, 0.0), 13, exact=True)
    sizes = [(f.users, f.candidates) for f in found.requests]
    assert sizes == [(1, 1), (1, 4), (1, 4), (1, 13), (3, 12)]
    largest = found.requests[3]
    assert np.array_equal(largest.items["item_id"], np.resize(requests[1].items["item_id"], 13))
    for f in found.requests:  # int8 activations are rounded together with other rows, so not bit by bit
        np.testing.assert_allclose(f.reference["like"], f.expected["like"], atol=0.05)
    several = found.requests[4]
    assert several.user_index is not None
    assert several.user_index.tolist() == [0, 1, 2] * 4
    assert several.items["item_id"][:3].tolist() == [r.items["item_id"][0] for r in requests]


@pytest.mark.parametrize("sizes", [[1], [1, 1], [7]])
def test_one_small_request_is_enough(ranker: Ranker, sizes: list[int]) -> None:
    requests = requests_of(sizes)
    found = make_fixtures(ranker, requests, logits(requests, ranker, 0.0), 1, exact=True)
    assert {f.candidates for f in found.requests} == {1}
    assert len(found.requests) == 4, "a recipe for single candidates has no request of several users"


def test_a_fixture_is_no_larger_than_the_engines_accept(ranker: Ranker) -> None:
    requests = requests_of([3])
    found = make_fixtures(ranker, requests, logits(requests, ranker, 0.0), 1 << 30, exact=True)
    assert max(f.candidates for f in found.requests) == ranker.max_candidates == 64


def test_the_tolerance_follows_the_arithmetic(ranker: Ranker) -> None:
    requests = requests_of([4, 4, 4])
    off = logits(requests, ranker, 0.5)
    exact = make_fixtures(ranker, requests, off, 9, exact=True).tolerances["like"]
    rounded = make_fixtures(ranker, requests, off, 9, exact=False).tolerances["like"]
    assert 1e-5 <= exact < 1e-4
    assert rounded == pytest.approx(2 * 0.5, abs=0.1)


def test_the_same_bundle_has_the_same_fixtures_and_they_pass(bundle: Path) -> None:
    manifest, names = read_manifest(bundle), ("fixtures.json", "fixtures.safetensors")
    requests = requests_of([4, 6])
    with Ranker.from_bundle(bundle) as loaded:
        reference = logits(requests, loaded, 0.0)
    written = []
    for _ in range(2):
        check = write_fixtures(bundle, manifest, requests, reference, (1, 9))
        assert (check.passed, check.value) == (True, 0.0)
        written.append([(bundle / name).read_bytes() for name in names])
    assert written[0] == written[1]


def test_a_build_records_the_gate_and_small_files(built_bundle: Path) -> None:
    (gate,) = (t for t in Bundle.open(built_bundle).report["targets"] if t["name"].startswith("fixtures"))
    name = "fixtures, max |difference| over tolerance"
    assert gate == {"name": name, "value": 0.0, "bound": 1.0, "relation": "<=", "passed": True}
    assert (built_bundle / "fixtures.safetensors").stat().st_size < 20_000


def hash_again(bundle: Path) -> Manifest:
    return write_manifest(bundle, read_manifest(bundle))


def test_validate_replays_them_and_says_which_failed(bundle: Path) -> None:
    fixtures = read_fixtures(bundle)
    wrong = [
        dataclasses.replace(f, expected={"like": f.expected["like"] + np.float32(f.name == "same-user")})
        for f in fixtures.requests
    ]
    save_fixtures(bundle, "fixtures", dataclasses.replace(fixtures, requests=tuple(wrong)))
    hash_again(bundle)
    result = CliRunner().invoke(main, ["validate", str(bundle), "--synthetic"])
    assert result.exit_code == 1, result.output
    assert "fixtures, max |difference| over tolerance (fixture 'same-user', task 'like': |difference| 1," in (
        result.stderr
    )


def test_validate_refuses_a_bundle_whose_fixtures_cannot_be_read(bundle: Path) -> None:
    (bundle / "fixtures.safetensors").write_bytes(b"")
    hash_again(bundle)
    result = CliRunner().invoke(main, ["validate", str(bundle), "--synthetic"])
    assert result.exit_code == 2, result.output
    assert "fixtures.safetensors: not a safetensors file" in result.stderr


def test_weights_of_another_model_are_caught(bundle: Path, tmp_path: Path) -> None:
    """Every file vouched for by its hash: only the fixtures can tell."""
    fixtures = read_fixtures(bundle)
    engine = next(e for e in read_manifest(bundle).engines if e.built.side == "item")
    for name in engine.built.files:
        if name.endswith(".data"):
            path = bundle / engine.directory / name
            weights = np.frombuffer(path.read_bytes(), np.uint8)
            path.write_bytes((weights ^ 0x10).tobytes())
    hash_again(bundle)
    with Ranker.from_bundle(bundle) as loaded:
        check = fixture_check(replay(fixtures, partial(score_alone, loaded)))
    assert not check.passed
    assert "fixture '" in check.name
