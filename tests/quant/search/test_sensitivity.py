import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphs.base.errors import UgsepError
from quant.calibration.statistics import observe
from quant.schemes.schemes import Absmax, Awq, Gptq, Mse
from quant.search.metrics import effect_of
from quant.search.scoring import open_scorer
from quant.search.sensitivity import plot_sensitivity, sensitivity
from quant.weights import quantize_side


@pytest.mark.parametrize("scheme", [Absmax(), Mse(), Gptq(), Awq()])
def test_each_weight_alone_has_the_effect_of_a_graph_with_it(graphs, requests, calibration, tmp_path, scheme) -> None:
    rows = sensitivity(*graphs, requests, scheme=scheme, calibration=calibration)
    assert [(r.side, r.weight) for r in rows] == [(r.side, r.weight) for r in sorted(rows, key=lambda r: r.sqnr_db)]
    assert {r.weight for r in rows} == {"user.in.weight", "item.in.weight", "ffn.up.weight", "ffn.down.weight"}
    if isinstance(scheme, Awq):
        return  # its graph holds folded constants, which the next check does not undo
    by_name = {r.weight: r for r in rows}
    reference = open_scorer(*graphs, requests, 1).score()["click"]
    for name in ("user.in.weight", "ffn.down.weight"):
        pair = []
        for path in graphs:
            model = onnx.load(path)
            tensor = next((t for t in model.graph.initializer if t.name == name), None)
            if tensor is not None:
                quantize_side(path, tmp_path / "q", scheme=scheme, calibration=calibration)
                held = {t.name: t for t in onnx.load(tmp_path / "q" / f"{path.stem}.w8a32.onnx").graph.initializer}
                values = numpy_helper.to_array(held[name]).astype(np.float32)
                values = values * numpy_helper.to_array(held[f"{name}.scale"])
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
            (tmp_path / "one").mkdir(exist_ok=True)
            onnx.save(model, tmp_path / "one" / path.name)
            pair.append(tmp_path / "one" / path.name)
        alone = open_scorer(*pair, requests, 1).score()["click"]
        expected = 10 * np.log10((reference**2).sum() / ((reference - alone) ** 2).sum())
        assert by_name[name].sqnr_db == pytest.approx(expected, abs=0.2)  # noise is 5e-3, additions differ by 1e-6


@pytest.mark.parametrize("scheme", [Mse(), Gptq(), Awq()])
def test_a_calibration_of_other_shapes_names_the_weight(graphs, requests, calibration, scheme) -> None:
    """Its graph hash matches: awq ended in NumPy's ValueError."""
    kinds = [observe(np.ones((3, 4), np.float32), 0, gram=True)] * len(calibration.item.tensors)
    item = replace(calibration.item, tensors=dict(zip(calibration.item.tensors, kinds, strict=True)))
    hostile = replace(calibration, item=item)
    with pytest.raises(UgsepError, match=r"weight '.*' takes inputs of shape .*, its calibration is of \[4\]"):
        sensitivity(*graphs, requests, scheme=scheme, calibration=hostile)


def test_an_interrupted_sensitivity_goes_on(graphs, requests, calibration, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "cache.json"
    kinds = {"scheme": Mse(), "calibration": calibration}
    whole = sensitivity(*graphs, requests, **kinds)

    def stop_at_third(event):
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(*graphs, requests, cache=cache, progress=stop_at_third, **kinds)
    assert len(json.loads(cache.read_text())["effects"]) == 2

    calls = []
    monkeypatch.setattr("quant.search.sensitivity.effect_of", lambda *a: calls.append(1) or effect_of(*a))
    assert sensitivity(*graphs, requests, cache=cache, **kinds) == whole
    assert len(calls) == 2
    assert sensitivity(*graphs, requests, cache=cache, **kinds) == whole
    assert len(calls) == 2
    sensitivity(*graphs, requests, cache=cache, scheme=Absmax(), calibration=calibration)
    assert len(calls) == 6  # another scheme is another key
    sensitivity(*graphs, requests[:-1], cache=cache, **kinds)
    assert len(calls) == 10  # and so are other requests
    document = json.loads(cache.read_text())
    document["effects"] = {key: {**effect, "sqnr_db": "9"} for key, effect in document["effects"].items()}
    cache.write_text(json.dumps(document))
    with pytest.raises(UgsepError, match=r"cache.json': effects\..*: sqnr_db is \"9\", not a number"):
        sensitivity(*graphs, requests, cache=cache, **kinds)
    for text, message in (
        ("[]", "is not a sensitivity cache"),
        ("null", "is not a sen"),
        ("[" * 100_000, "not valid"),
    ):
        cache.write_text(text)
        with pytest.raises(UgsepError, match=message):
            sensitivity(*graphs, requests, cache=cache, **kinds)


def test_the_plot_is_drawn(graphs, requests, tmp_path) -> None:
    rows = sensitivity(*graphs, requests, scheme=Absmax())
    plot_sensitivity(rows, tmp_path / "s.svg")
    assert "<svg" in (tmp_path / "s.svg").read_text()
    with pytest.raises(UgsepError, match="cannot draw"):
        plot_sensitivity(rows, tmp_path / "s.nothing")
