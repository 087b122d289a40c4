"""State as float16: half the bytes between the graphs, and nothing but its rounding changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from engines.build.graph_exports import export_graphs
from engines.build.source_model import fresh_feeds, of_model, split_source_model
from export.lowering import lower_for_cpu, lower_for_one_user
from graphs.base.errors import UgsepError
from graphs.base.names import USER_INDEX
from tests.graphs.model_laws import make_config, make_model
from tests.suites import slow_but


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("variant", slow_but({"hstu"}, ["zenith", "hstu", "onetrans"]))
def test_only_the_rounding_of_the_state_changes(tmp_path: Path, variant: str) -> None:
    source = of_model(make_model(make_config(variant, "2:1")))
    split = split_source_model(source)
    paths = export_graphs("m", source, split, tmp_path)
    halved, plain = ({s: tmp_path / f"{s}.{k}.onnx" for s in ("user", "item")} for k in ("half", "plain"))
    for side in ("user", "item"):
        lower_for_cpu(paths[side], halved[side], half_state=True)  # type: ignore[index]  # a Literal
        lower_for_cpu(paths[side], plain[side])  # type: ignore[index]  # a Literal
    feeds = {k: {n: v.numpy() for n, v in f.items()} for k, f in fresh_feeds(source, split, 3, 17, seed=1).items()}
    names = list(split.user.outputs)
    whole = dict(zip(names, session(plain["user"]).run(names, feeds["user"]), strict=True))
    state = dict(zip(names, session(halved["user"]).run(names, feeds["user"]), strict=True))
    for name in names:  # onetrans also hands over which positions are padding
        assert whole[name].dtype in (np.float32, np.bool_)
        kind = np.float16 if whole[name].dtype == np.float32 else np.bool_
        assert state[name].dtype == kind
        np.testing.assert_array_equal(state[name], whole[name].astype(kind))
    assert any(v.dtype == np.float16 for v in state.values())
    rounded = {n: v.astype(whole[n].dtype) for n, v in state.items()}
    for one in (False, True):
        if one:
            paths_of_one = {k: g["item"].with_suffix(".one.onnx") for k, g in (("half", halved), ("plain", plain))}
            assert all(
                lower_for_one_user(g["item"], paths_of_one[k]) for k, g in (("half", halved), ("plain", plain))
            )
            given = {n: v for n, v in feeds["item"].items() if n != USER_INDEX}
            state, rounded = ({n: v[:1] for n, v in values.items()} for values in (state, rounded))
            half, full = session(paths_of_one["half"]), session(paths_of_one["plain"])
        else:
            given, half, full = feeds["item"], session(halved["item"]), session(plain["item"])
        for value, expected in zip(
            half.run(None, {**given, **state}), full.run(None, {**given, **rounded}), strict=True
        ):
            np.testing.assert_array_equal(value, expected)


def test_ids_and_features_keep_their_types(tmp_path: Path) -> None:
    source = of_model(make_model(make_config("zenith", "2:1")))
    split = split_source_model(source)
    paths = export_graphs("m", source, split, tmp_path)
    for side in ("user", "item"):
        lower_for_cpu(paths[side], tmp_path / "l.onnx", half_state=True)  # type: ignore[index]  # a Literal
        types = {i.name: i.type.tensor_type.elem_type for i in onnx.load(tmp_path / "l.onnx").graph.input}
        states = {n for n, t in types.items() if t == TensorProto.FLOAT16}
        assert states == (set() if side == "user" else set(split.user.outputs))


def test_a_whole_model_has_no_state(tmp_path: Path) -> None:
    source = of_model(make_model(make_config("zenith", "2:1")))
    paths = export_graphs("m", source, split_source_model(source), tmp_path)
    with pytest.raises(UgsepError, match=r"full.onnx' is neither a user nor an item graph"):
        lower_for_cpu(paths["full"], tmp_path / "l.onnx", half_state=True)
