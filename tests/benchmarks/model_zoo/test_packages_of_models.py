"""A few models of every package, through the whole test bed, in the environment of the packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.model_zoo.builds import BUILT
from benchmarks.model_zoo.environment import DEFAULT_FOLDER, ROOT, python_of, set_up
from benchmarks.model_zoo.measure import TOLERANCE64
from benchmarks.model_zoo.packages.table import PACKAGES, identifier, make, names
from benchmarks.model_zoo.processes import measured
from graphs.base.errors import UgsepError

FOLDER = ROOT / DEFAULT_FOLDER
#: Least limits at 256 candidates: of the user's columns of first layers, of prefixes and of whole towers.
LEAST_LIMIT = {
    "deepctr_torch_wdl": 1.4,
    "deepctr_torch_mmoe": 1.4,
    "torch_rechub_dcn_v2": 1.2,
    "torch_rechub_dssm": 2.0,
    "recbole_deepfm": 1.3,
    "recbole_sasrec": 50.0,
    "recbole_gru4rec": 50.0,
    "fuxictr_deepfm": 1.3,
    "fuxictr_din": 1.05,
    "torchrec_dlrm_dcn_full_rank": 1.1,
    "transformers_llama_last_position": 5.0,
}


def test_names_are_identifiers_of_one_model_each() -> None:
    known = names()
    assert len(known) == sum(map(len, PACKAGES.values())) >= 60
    assert all(name.isidentifier() for name in known)
    assert identifier("torch-rechub", "DCN-V2, mixture") == "torch_rechub_dcn_v2_mixture"
    assert set(BUILT) <= set(known)
    assert len(set(BUILT)) >= 20
    assert {known[name][0] for name in LEAST_LIMIT} == set(PACKAGES)


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UgsepError, match="did you mean 'recbole_sasrec'"):
        make("recbole_sasrek")


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter of the environment, which is made if it is missing."""
    set_up(FOLDER, print)
    return python_of(FOLDER)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LEAST_LIMIT)
def test_model(name: str, python: Path, tmp_path: Path) -> None:
    found = measured(python, name, tmp_path, rounds=2, seconds=600)
    assert found.outcome == "split", found.reason
    assert found.limit >= LEAST_LIMIT[name]
    assert found.float64 is None or found.float64 <= TOLERANCE64
    assert min(found.whole_ms, found.user_ms, found.item_ms) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_that_takes_too_long_is_a_result(python: Path, tmp_path: Path) -> None:
    found = measured(python, "recbole_sasrec", tmp_path, rounds=2, seconds=1)
    assert (found.outcome, found.reason) == ("failed", "took more than 1 s")
