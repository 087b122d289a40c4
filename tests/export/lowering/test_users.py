"""The item graph for requests of one user: equal to the gathering form, and it shares its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engines.build.graph_exports import export_graphs
from engines.build.source_model import SourceModel, fresh_feeds, of_model, of_module, split_source_model
from export.lowering import lower_for_cpu, lower_for_one_user
from graphs.base.names import USER_INDEX
from graphs.split.split import Split
from quant.schemes.schemes import scheme_from
from quant.weights import quantize_side
from tests.export.lowering_graphs import ffn, item, reference
from tests.graphs.model_laws import SEQUENCES, make_config, make_model
from tests.graphs.small_models import WORKS, D, Keywords, N, layers
from tests.suites import slow_but


def both_forms(source_model: SourceModel, folder: Path, view: str) -> tuple[Split, Path, Path]:
    """Export, quantize and lower; returns the split, the gathering item file and that for one user."""
    split_model = split_source_model(source_model)
    source = export_graphs("m", source_model, split_model, folder / "onnx")["item"]
    if view != "fp32":
        quantize_side(source, folder / "onnx", scheme=scheme_from("absmax"))
        source = source.with_name("item.w8a32.onnx")
    path, one = folder / "item.onnx", folder / "one.onnx"
    lower_for_cpu(source, path, "matmul-nbits" if view == "w8a8" else "keep")
    assert lower_for_one_user(path, one)
    return split_model, path, one


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # int8 weights, FP32 GEMMs
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_equal(source_model: SourceModel, folder: Path, view: str, tolerance: float) -> Path:
    split_model, path, one = both_forms(source_model, folder, view)
    gathering, broadcasting = session(path), session(one)
    varied = False
    for candidates in (1, 2, 257):
        drawn = fresh_feeds(source_model, split_model, 1, candidates, seed=candidates)["item"]
        feeds = {k: v.numpy() for k, v in drawn.items()}
        fewer = {k: v for k, v in feeds.items() if k != USER_INDEX}
        pairs = zip(split_model.item.outputs, broadcasting.run(None, fewer), gathering.run(None, feeds), strict=True)
        for name, value, expected in pairs:
            assert value.shape == expected.shape, name
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * scale)
            varied |= bool(np.ptp(expected) > 0)  # an output of the user's alone is the same for all candidates
        for name, expected in split_model.item(drawn).items() if view == "fp32" else ():
            value = broadcasting.run([name], fewer)[0]
            np.testing.assert_allclose(
                value, expected.numpy(), rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max()))
            )
    assert varied, "nothing to compare"
    return one


VARIANTS = [
    *("zenith", "rankmixer", "rankmixer-regrouped", "rankmixer-moe", "tokenmixer-large", "tokenmixer-large-split"),
    *("tokenmixer-large-moe", "zenith-pp", "unimixer", "unimixing-lite"),
    *SEQUENCES,
]


@pytest.mark.parametrize("variant", slow_but({"zenith", "rankmixer-moe", "hstu"}, VARIANTS))
def test_models(tmp_path: Path, variant: str) -> None:
    # Exactly the same products of the same rows, batched otherwise: FP32 sums of at most a few hundred terms.
    one = check_equal(of_model(make_model(make_config(variant, "2:1"))), tmp_path, "fp32", 1e-5)
    inputs = onnx.load(one, load_external_data=False).graph.input
    assert USER_INDEX not in {i.name for i in inputs}
    states = [i.type.tensor_type.shape.dim[0].dim_value for i in inputs if i.name.startswith("state_")]
    assert states == [1] * len(states) != []


@pytest.mark.parametrize("variant", slow_but({"hstu"}, SEQUENCES))
def test_candidates_are_rows_of_one_product_per_head(tmp_path: Path, variant: str) -> None:
    config = make_config(variant, "2:1")
    _, _, one = both_forms(of_model(make_model(config)), tmp_path, "fp32")
    graph = onnx.shape_inference.infer_shapes(onnx.load(one)).graph
    states = {i.name for i in graph.input if i.name.startswith("state_")}
    made = {output: node for node in graph.node for output in node.output}

    def of_the_user(name: str) -> bool:
        node = made.get(name)
        return name in states if node is None else len(node.input) > 0 and of_the_user(node.input[0])

    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    products = [n for n in graph.node if n.op_type == "MatMul" and of_the_user(n.input[1])]
    assert len(products) == 2 * config.layers  # with the keys and with the values of every layer
    assert all(ranks[n.input[1]] == 3 for n in products)  # [heads, .., ..]: no axis of the candidates


@pytest.mark.parametrize("variant", slow_but({"rankmixer-moe"}, ["zenith", "tokenmixer-large", "rankmixer-moe"]))
@pytest.mark.parametrize("view", ["w8a32", "w8a8"])
def test_quantized_models(tmp_path: Path, variant: str, view: str) -> None:
    # int8 activations are quantized row by row: one that rounding moves over the edge of a step changes by 1/127 of
    # its row's maximum; the logit sums tens of those, of which hardly any move.
    tolerance = 1e-5 if view == "w8a32" else 1e-2
    check_equal(of_model(make_model(make_config(variant, "2:1"))), tmp_path, view, tolerance)


#: Those in which the user enters the item graph in ways of their own.
OF_EACH_KIND = ("token major", "folded state", "in place", "mask", "product from the left", "heads", "tied weights")


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, WORKS))
def test_third_party_models(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    check_equal(of_module(Keywords(WORKS[name], **layers()).eval(), example, ("u",), ("i",)), tmp_path, "fp32", 1e-5)


def test_ids_flags_and_sequences_of_the_user(tmp_path: Path) -> None:
    """State that is no float: ids that are looked up per candidate, masks, sequences attended to."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.wide = nn.Embedding(11, 6), nn.Embedding(11, 40)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, history: Tensor, last: Tensor, item: Tensor) -> Tensor:
            memory = self.table(history)  # [N, L, 6]
            query = self.table(item)[:, None]
            seen, _ = self.attention(query, memory, memory, key_padding_mask=history == 0, need_weights=False)
            return (seen[:, 0] * query[:, 0]).sum(-1) + (self.wide(last) * self.wide(item)).sum(-1)

    torch.manual_seed(2)
    example = {n: torch.randint(0, 11, shape) for n, shape in (("history", (N, 5)), ("last", (N,)), ("item", (N,)))}
    example["history"][:, 0] = 1  # never a row of padding only
    example["history"].clamp_(min=1)
    source_model = of_module(Attends().eval(), example, ("history", "last"), ("item",))
    check_equal(source_model, tmp_path, "fp32", 1e-5)


@settings(max_examples=40, deadline=None)
@given(candidates=st.integers(1, 40), seed=st.integers(0, 1 << 20), scale=st.sampled_from([1e-3, 1.0, 30.0]))
@pytest.mark.parametrize("int8", [False, True])
def test_any_rows(
    tmp_path_factory: pytest.TempPathFactory, int8: bool, candidates: int, seed: int, scale: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"item-{int8}"
    if not folder.exists():
        folder.mkdir()
        item(folder / "a.onnx", np.random.default_rng(7), int8)
        lower_for_cpu(folder / "a.onnx", folder / "b.onnx")
        assert lower_for_one_user(folder / "b.onnx", folder / "c.onnx")
    rng = np.random.default_rng(seed)
    state = (rng.standard_normal((1, 16)) * scale).astype(np.float32)
    feeds = {"ids": rng.integers(0, 50, candidates), "state": state}
    gathered = {**feeds, USER_INDEX: np.zeros(candidates, np.int64)}
    want = reference(folder / "a.onnx", gathered)["click"]
    # Sums of 16 products of values up to 100 or so, squashed by a sigmoid to one: a few units of 2^-24.
    np.testing.assert_allclose(reference(folder / "c.onnx", feeds)["click"], want, rtol=0, atol=2e-6)
    np.testing.assert_allclose(reference(folder / "b.onnx", gathered)["click"], want, rtol=0, atol=2e-6)


def test_weights_are_shared(tmp_path: Path) -> None:
    item(tmp_path / "a.onnx", np.random.default_rng(7), False)
    lower_for_cpu(tmp_path / "a.onnx", tmp_path / "b.onnx")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert lower_for_one_user(tmp_path / "b.onnx", tmp_path / "c.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "c.onnx"])
    tensors = {t.name: t for t in onnx.load(tmp_path / "c.onnx", load_external_data=False).graph.initializer}
    outside = {n: t for n, t in tensors.items() if t.data_location == onnx.TensorProto.EXTERNAL}
    assert {entry.value for t in outside.values() for entry in t.external_data if entry.key == "location"} == {
        "b.onnx.data"
    }
    assert outside
    assert (tmp_path / "c.onnx").stat().st_size < 8192


def test_state_of_several_users_is_refused(tmp_path: Path) -> None:
    item(tmp_path / "a.onnx", np.random.default_rng(7), False)
    lower_for_one_user(lower_for_cpu(tmp_path / "a.onnx", tmp_path / "b.onnx").path, tmp_path / "c.onnx")
    with pytest.raises(Exception, match="state"):
        reference(tmp_path / "c.onnx", {"ids": np.arange(5), "state": np.zeros((3, 16), np.float32)})


def test_graphs_without_user_state_have_no_second_form(tmp_path: Path) -> None:
    source = ffn(tmp_path / "a.onnx", np.random.default_rng(0), False, "gelu")
    assert not lower_for_one_user(lower_for_cpu(source, tmp_path / "b.onnx").path, tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()
