"""Histories of any length in ONNX Runtime: one user graph and one item graph for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.metadata import Stamp
from export.onnx_file import export_subgraph
from graphs.base.names import USER_INDEX
from graphs.split.lengths import AnyLength, split_for_any_length
from tests.graphs.split.test_lengths import LONGEST, Attention, Model, example, is_causal, padded, pointwise

USER = ["profile", "history"]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def written(made: AnyLength, folder: Path) -> dict[str, Path]:
    """Export both graphs from rows of the longest history."""
    rows, items = floats(3, LONGEST), floats(7, LONGEST)
    state = made.split.user({n: rows[n] for n in USER})
    index = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    feeds = {**rows, **state, "item": items["item"], USER_INDEX: index}
    paths = {}
    for side, graph in (("user", made.split.user), ("item", made.split.item)):
        axes = {n: "users" if side == "user" or n in state else "candidates" for n in graph.inputs}
        stamp = Stamp("m", side, "fp32", ())  # type: ignore[arg-type]  # a Literal
        given = {n: feeds[n] for n in graph.inputs}
        paths[side] = export_subgraph(graph, given, axes, folder / f"{side}.onnx", stamp, made.axes).path
    return paths


def floats(rows: int, length: int) -> dict[str, torch.Tensor]:
    return {n: v.float() if v.is_floating_point() else v for n, v in example(rows, length).items()}


@pytest.mark.slow
@pytest.mark.parametrize("attention", [is_causal, padded, pointwise])
def test_one_file_for_every_length(attention: Attention, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = Model(attention).eval()
    made = split_for_any_length(model, floats(5, LONGEST), user=USER, item=["item"], history={"history": 1})
    paths = written(made, tmp_path)
    shapes = {i.name: i.type.tensor_type.shape.dim for i in onnx.load(paths["user"]).graph.input}
    assert [d.dim_param for d in shapes["history"]] == ["users", "history"]
    user, item = session(paths["user"]), session(paths["item"])
    for length, users, candidates in ((1, 1, 4), (5, 3, 2), (12, 2, 9), (LONGEST, 4, 1)):
        rows, items = floats(users, length), floats(candidates, length)["item"]
        index = torch.randint(0, users, (candidates,))
        with torch.no_grad():
            expected = model(*(rows[n][index] for n in USER), items).numpy()
        names = [o.name for o in user.get_outputs()]
        state = dict(zip(names, user.run(names, {n: rows[n].numpy() for n in USER}), strict=True))
        feeds = {"item": items.numpy(), USER_INDEX: index.numpy(), **state}
        scores = item.run(None, {i.name: feeds[i.name] for i in item.get_inputs()})[0]
        # FP32 sums of at most 24 products of size about 1, through two layers and their norms.
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
