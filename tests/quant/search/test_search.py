import json

import pytest
import yaml

from graphs.base.errors import GateFailed, UgsepError
from quant.policy import policy_from
from quant.schemes.schemes import Absmax, Mse
from quant.search.search import Goal, policy_yaml, search


def slower(shape, rows):
    """A machine on which int8 wins at few rows only, and fp16 never."""
    return {"int8": rows * 2.0, "fp16": rows + 12.0, "fp32": rows + 10.0}


def faster(shape, rows):
    return {"int8": 1.0, "fp16": 2.0, "fp32": 2.0}


def fast_fp16(shape, rows):
    """A machine with fast FP16 GEMMs, and without int8."""
    return {"int8": float("inf"), "fp16": 1.0, "fp32": 2.0}


def test_search_takes_int8_where_it_is_faster(graphs, requests, calibration) -> None:
    goal = Goal(max_drop=1.0, min_sqnr_db=20.0)
    kinds = {"scheme": Mse(), "calibration": calibration, "goal": goal}
    found = search(*graphs, requests, measure=slower, candidates=256, **kinds)
    assert {c.weight: (c.precision, c.rows) for c in found.choices} == {
        "user.in.weight": ("int8", 1),
        "item.in.weight": ("fp32", 256),
        "ffn.up.weight": ("fp32", 256),
        "ffn.down.weight": ("fp32", 256),
    }
    document = yaml.safe_load(policy_yaml(found))
    policy = policy_from(document["policy"])
    assert policy == found.policy
    assert policy.precision_of("user", "user.in.weight")[0] == "int8"
    assert "nothing is faster" in policy.precision_of("item", "ffn.up.weight")[1]


def test_search_gives_back_the_most_harmful_until_the_gate_holds(graphs, requests, calibration) -> None:
    kinds = {"scheme": Absmax(), "calibration": calibration, "measure": faster}
    loose = search(*graphs, requests, goal=Goal(1.0, 0.0), **kinds)
    assert {c.precision for c in loose.choices} == {"int8"}
    bound = loose.effect.sqnr_db + 0.5
    strict = search(*graphs, requests, goal=Goal(1.0, bound), **kinds)
    assert strict.effect.sqnr_db >= bound
    back = [c for c in strict.choices if c.precision == "fp32"]
    assert back
    assert min(c.sqnr_db for c in strict.choices) in [c.sqnr_db for c in back]
    assert all("for quality" in c.reason for c in back)
    nothing = search(*graphs, requests, goal=Goal(1.0, 1000.0), **kinds)
    assert {c.precision for c in nothing.choices} == {"fp32"}


def test_search_fits_bytes_or_says_what_is_impossible(graphs, requests, calibration) -> None:
    kinds = {"scheme": Mse(), "calibration": calibration, "measure": slower}
    free = search(*graphs, requests, goal=Goal(1.0, 0.0), **kinds)
    bound = sum(c.bytes for c in free.choices) - 1
    found = search(*graphs, requests, goal=Goal(1.0, 0.0, bound), **kinds)
    assert sum(c.bytes for c in found.choices) <= bound
    assert any("for bytes" in c.reason for c in found.choices)
    with pytest.raises(UgsepError, match="--max-bytes 10 is below"):
        search(*graphs, requests, goal=Goal(1.0, 0.0, 10), **kinds)
    with pytest.raises(GateFailed, match=r"no policy within .* keeps SQNR >= 200 dB"):
        search(*graphs, requests, goal=Goal(1.0, 200.0, bound), **kinds)


def test_search_takes_fp16_where_it_is_fastest_or_costs_no_time_for_bytes(graphs, requests, calibration) -> None:
    kinds = {"scheme": Mse(), "calibration": calibration}
    found = search(*graphs, requests, measure=fast_fp16, goal=Goal(1.0, 40.0), **kinds)
    assert {c.precision for c in found.choices} == {"fp16"}
    assert "int8 does not run" in found.choices[0].reason
    assert json.loads(json.dumps(found.choices[0].to_json()))["ms"] == {"int8": None, "fp16": 1.0, "fp32": 2.0}
    assert found.effect.sqnr_db > 50  # eleven bits of mantissa and four weights
    exact = search(*graphs, requests, measure=fast_fp16, goal=Goal(1.0, 1000.0), **kinds)
    assert {c.precision for c in exact.choices} == {"fp32"}
    fp16_bytes = sum(c.sizes["fp16"] for c in found.choices)
    # int8 is faster here but misses 1000 dB; FP16 replaces it if the bytes allow no more
    with pytest.raises(GateFailed, match=f"no policy within {fp16_bytes} bytes"):
        search(*graphs, requests, measure=faster, goal=Goal(1.0, 1000.0, fp16_bytes), **kinds)

    def even(shape, rows):
        return {"int8": 3.0, "fp16": 1.0, "fp32": 1.0}

    small = search(*graphs, requests, measure=even, goal=Goal(1.0, 40.0, fp16_bytes), **kinds)
    assert {c.precision for c in small.choices} == {"fp16"}
    assert all(c.reason.startswith("for bytes; nothing is faster") for c in small.choices)
