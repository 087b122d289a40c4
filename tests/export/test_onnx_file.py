"""Exported files: names, axes, opset, metadata, layout, and equal results in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from engines.build.graph_exports import export_graphs
from engines.build.source_model import fresh_feeds, of_model, of_module, split_source_model
from export.canonical import canonicalize
from export.metadata import OPSET, Stamp
from export.onnx_file import export_subgraph
from graphs.base.errors import UgsepError
from graphs.split.split import Subgraph, split
from tests import tiny
from tests.graphs.unfamiliar_models import UNFAMILIAR, unfamiliar
from tests.suites import slow_but


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    model = tiny.model()
    split_model = split_source_model(of_model(model))
    return model, split_model, export_graphs("tiny", of_model(model), split_model, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("side", ["full", "user", "item"])
@pytest.mark.parametrize(("users", "candidates"), [(1, 1), (1, 2), (3, 19)])
def test_files_give_pytorch_s_values_at_any_rows(exported, side: str, users: int, candidates: int) -> None:
    model, split_model, paths = exported
    feeds = fresh_feeds(of_model(model), split_model, users, candidates, seed=candidates)[side]
    subgraph: Subgraph = getattr(split_model, side)
    session = ort.InferenceSession(str(paths[side]), providers=["CPUExecutionProvider"])
    got = session.run(list(subgraph.outputs), {k: v.numpy() for k, v in feeds.items()})
    for value, wanted in zip(got, subgraph(feeds).values(), strict=True):
        # FP32 sums of tens of terms in another order, on values up to a few tens.
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["full", "user", "item"])
def test_names_axes_opset_and_stamp(exported, side: str) -> None:
    model, split_model, paths = exported
    proto = onnx.load(paths[side], load_external_data=False)
    subgraph: Subgraph = getattr(split_model, side)
    assert [i.name for i in proto.graph.input] == list(subgraph.inputs)
    assert [o.name for o in proto.graph.output] == list(subgraph.outputs)
    assert {o.domain: o.version for o in proto.opset_import} == {"": OPSET}
    rows = {i.name: i.type.tensor_type.shape.dim[0].dim_param for i in proto.graph.input}
    state = {s.name for s in split_model.state}
    for name, axis in rows.items():
        assert axis == ("users" if side == "user" or name in state else "candidates"), name
    props = {p.key: p.value for p in proto.metadata_props}
    assert (props["ugsep.model"], props["ugsep.side"], props["ugsep.precision"]) == ("tiny", side, "fp32")
    assert json.loads(props["ugsep.keep_float"]) == list(model.keep_float)


def test_initializers_carry_parameter_names_and_values(exported) -> None:
    model, _, paths = exported
    loaded = ir.load(paths["full"])
    weights = {k: v.const_value.numpy() for k, v in loaded.graph.initializers.items()}
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, value in model.state_dict().items():
        assert name in weights, name
        wanted = (
            value.numpy().T if name in linear else value.numpy()
        )  # nn.Linear stores [N, K], the contract is [K, N]
        np.testing.assert_array_equal(weights[name], wanted)
    kinds = {n.op_type for n in loaded.graph}
    assert "Gemm" not in kinds
    for node in loaded.graph:
        assert not (node.op_type == "Transpose" and node.inputs[0].is_initializer())


def test_no_path_of_this_machine_is_in_the_file(exported) -> None:
    _, _, paths = exported
    for path in paths.values():
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_the_same_model_gives_the_same_bytes(exported, tmp_path: Path) -> None:
    model, split_model, paths = exported
    again = export_graphs("tiny", of_model(model), split_model, tmp_path)
    for side, path in paths.items():
        assert path.read_bytes() == again[side].read_bytes()


def test_large_weights_are_external_and_small_ones_are_not(exported, tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big = nn.Linear(300, 200)
            self.small = nn.Linear(200, 1)

        def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return self.small(torch.relu(self.big(u)) + i)

    split_model = split(Wide(), (torch.randn(3, 300), torch.randn(3, 200)), user=["u"], item=["i"])
    feeds = {"u": torch.randn(3, 300)}
    done = export_subgraph(
        split_model.user, feeds, {"u": "users"}, tmp_path / "user.onnx", Stamp("wide", "user", "fp32", ())
    )
    assert done.data is not None
    assert done.data.stat().st_size >= 300 * 200 * 4
    assert done.data.stat().st_mode == done.path.stat().st_mode  # onnx_ir writes the data 0600
    proto = onnx.load(done.path, load_external_data=False)
    external = {t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert external == {"big.weight"}
    session = ort.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"u": feeds["u"].numpy()})
    np.testing.assert_allclose(got, next(iter(split_model.user(feeds).values())).numpy(), rtol=1e-5, atol=1e-5)


def test_a_weight_read_in_both_layouts_keeps_both(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))

        def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return (u @ self.table) @ self.table.T + i

    module = Tied()
    split_model = split(module, (torch.randn(3, 5), torch.randn(3, 5)), user=["u"], item=["i"])
    feeds = {"u": torch.randn(4, 5)}
    path = tmp_path / "user.onnx"
    export_subgraph(split_model.user, feeds, {"u": "users"}, path, Stamp("tied", "user", "fp32", ()))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"u": feeds["u"].numpy()})
    np.testing.assert_allclose(
        got, (feeds["u"] @ module.table @ module.table.T).detach().numpy(), rtol=1e-5, atol=1e-5
    )


def test_canonical_form_is_reached_once(exported) -> None:
    _, _, paths = exported
    model = ir.load(paths["item"])
    before = [(n.op_type, [v.name if v else None for v in n.inputs]) for n in model.graph]
    canonicalize(model)
    assert [(n.op_type, [v.name if v else None for v in n.inputs]) for n in model.graph] == before


def test_names_of_inputs_outputs_and_parameters_may_be_alike(tmp_path: Path) -> None:
    """An input named like another's identifier, a parameter, an output, or what the exporter calls a product."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 5))
            self.linear = nn.Linear(5, 3)

        def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            u = (x["a.b"] * x["weight"]) @ self.weight
            joined = self.linear(u * x["a_b"] + x["add"] + x["mul"])
            return {
                "score": joined.sum(-1) + x["select"].sum(-1),
                "linear": joined[:, 0],
                "relu": joined.relu()[:, 1],
            }

    torch.manual_seed(0)
    names = ("a.b", "weight", "a_b", "add", "mul", "select")
    rows = {name: torch.randn(4, 5) for name in names}
    split_model = split(Alike().eval(), {"x": rows}, user=["a.b", "weight"], item=["a_b", "add", "mul", "select"])
    source_model = of_module(Alike(), {"x": rows}, split_model.user_inputs, split_model.item_inputs)
    feeds = fresh_feeds(source_model, split_model, 3, 7, seed=1)
    state = {s.name for s in split_model.state}
    for side in ("full", "user", "item"):
        subgraph: Subgraph = getattr(split_model, side)
        axes = {n: "users" if side == "user" or n in state else "candidates" for n in subgraph.inputs}
        file = export_subgraph(subgraph, feeds[side], axes, tmp_path / f"{side}.onnx", Stamp("m", side, "fp32", ()))
        session = ort.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == list(subgraph.inputs)
        outputs = [o.name for o in session.get_outputs()]
        got = session.run(None, {k: v.numpy() for k, v in feeds[side].items()})
        for value, wanted in zip(got, subgraph(feeds[side]).values(), strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-5, atol=1e-5)  # FP32 sums of 5 terms
        assert len(set(outputs)) == len(subgraph.outputs)


def test_an_output_named_like_an_input_is_refused(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, u: torch.Tensor, score: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"score": (u.exp() * score).sum(-1)}

    rows = {"u": torch.randn(4, 5), "score": torch.randn(4, 5)}
    subgraph = split(Same(), rows, user=["u"], item=["score"]).full
    with pytest.raises(UgsepError, match="'score' is both an input and an output of the model"):
        export_subgraph(
            subgraph, rows, dict.fromkeys(rows, "candidates"), tmp_path / "a.onnx", Stamp("m", "full", "fp32", ())
        )


#: One of each kind in every run; the others take seconds each, and are compared with PyTorch before the export.
OF_EACH_KIND = (
    "einsum with an ellipsis",
    "index_add",
    "searchsorted",
    "rotary embedding",
)


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, UNFAMILIAR))
def test_decomposed_ops_give_pytorch_s_values(name: str, tmp_path: Path) -> None:
    model, example = unfamiliar(name, torch.float32)
    source = of_module(model, example, ("u",), ("i",))
    found = split_source_model(source)
    paths = export_graphs("unfamiliar", source, found, tmp_path)
    feeds = fresh_feeds(source, found, 3, 9, seed=1)
    for side, subgraph in (("full", found.full), ("user", found.user), ("item", found.item)):
        session = ort.InferenceSession(str(paths[side]), providers=["CPUExecutionProvider"])
        got = session.run(list(subgraph.outputs), {k: v.numpy() for k, v in feeds[side].items()})
        for value, wanted in zip(got, subgraph(feeds[side]).values(), strict=True):
            # FP32 sums of up to a few hundred terms in another order.
            np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-4, atol=1e-4)
