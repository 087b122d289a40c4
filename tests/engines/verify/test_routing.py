"""Rows that a served graph sends to other experts are identified, with the logit gap of the tie."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from engines.build.graph_exports import export_graphs
from engines.build.source_model import of_model, split_source_model
from engines.cli.main import main
from engines.recipes.recipe import Gates
from engines.verify.checks import routing_checks, split_errors
from engines.verify.routing import Routing, compare_graphs
from graphs.base.features import random_rows
from graphs.layers.moe import SoftmaxRouter
from graphs.models.ranking_model import RankingModel
from quant.requests.spec import Request
from tests.graphs.model_laws import FEATURES, make_config, make_model
from tests.suites import slow_but

USERS, CANDIDATES = 7, 9


def some_requests() -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(USERS):
        columns = {name: v.numpy() for name, v in random_rows(FEATURES, CANDIDATES, generator).items()}
        user = {f.name: columns[f.name][:1] for f in FEATURES if f.side == "user"}
        made.append(Request(i, user, {f.name: columns[f.name] for f in FEATURES if f.side == "item"}))
    return made


def chosen(model: RankingModel, requests: list[Request]) -> dict[str, Tensor]:
    """Return the experts [T, rows, E] that every router of the whole PyTorch model chooses."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, gates, name=name: found.__setitem__(name, gates > 0))
        for name, module in model.named_modules()
        if isinstance(module, SoftmaxRouter)
    ]
    users = {k: np.concatenate([np.repeat(r.user[k], CANDIDATES, 0) for r in requests]) for k in requests[0].user}
    items = {k: np.concatenate([r.items[k] for r in requests]) for k in requests[0].items}
    with torch.no_grad():
        model({k: torch.from_numpy(v) for k, v in {**users, **items}.items()})
    for hook in hooks:
        hook.remove()
    return found


def moved(model: RankingModel, size: float) -> RankingModel:
    """Return the same model with slightly perturbed routers."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, SoftmaxRouter):
                weight = module.router.weight
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    return other


@pytest.fixture(scope="module", params=slow_but({"zenith-pp"}, ["tokenmixer-large-moe", "zenith-pp"]))
def model(request: pytest.FixtureRequest) -> RankingModel:
    return make_model(make_config(request.param, "1:1", layers=1))


@pytest.fixture(scope="module")
def graphs(model: RankingModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source_model = of_model(model)
    files = export_graphs("m", source_model, split_source_model(source_model), tmp_path_factory.mktemp("routing"))
    return {"user": files["user"], "item": files["item"]}


def with_routers_of(model: RankingModel, graphs: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Return the graphs with the router weights of another model."""
    weights = {n: p.detach().numpy() for n, p in model.named_parameters() if n.endswith("router.weight")}
    found = []
    for side, file in graphs.items():
        graph = onnx.load(file)
        for tensor in graph.graph.initializer:
            if tensor.name in weights:
                assert tuple(tensor.dims) == weights[tensor.name].shape
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
                found.append(tensor.name)
        onnx.save(graph, folder / f"{side}.onnx")
    assert sorted(found) == sorted(weights)
    return {side: folder / f"{side}.onnx" for side in graphs}


def test_rows_with_other_experts_are_found(model: RankingModel, graphs: dict[str, Path], tmp_path: Path) -> None:
    other, requests = moved(model, 0.02), some_requests()
    found = compare_graphs(graphs, with_routers_of(other, graphs, tmp_path), requests)
    before, after = chosen(model, requests), chosen(other, requests)
    assert len(before) == found.routers
    expected = torch.stack([(before[k] != after[k]).any(-1).any(0) for k in before]).any(0).numpy()
    assert 0 < expected.sum() < expected.size  # some rows of each kind, otherwise the test shows nothing
    np.testing.assert_array_equal(found.flipped, expected)
    assert not (found.of_user & ~found.flipped).any()
    # One user's rows share the user graph's choices.
    by_user = found.of_user.reshape(USERS, CANDIDATES)
    assert (by_user == by_user[:, :1]).all()
    np.testing.assert_array_equal(np.isnan(found.gap), ~expected)
    # A small perturbation flips near ties, not clear choices.
    assert np.median(found.gap[expected]) < found.usual_gap
    assert "rows with the same experts" in str(found)
    same, others = routing_checks(Gates(rerouted_rows=0.0), found)
    assert same.value == found.error[~expected].max()
    assert others.value == expected.mean()
    assert not others.passed
    # The gap of every flip is at least the row's smallest gap.
    assert (found.narrowest[expected] <= found.gap[expected]).all()
    assert np.isfinite(found.narrowest).all()


def test_a_row_tied_in_fp32_does_not_fail_the_split() -> None:
    nothing = np.zeros(3, bool)
    routing = Routing(np.zeros(3), nothing, nothing, np.full(3, np.nan), np.array([1.0, 1e-7, 0.5]), 0.5, 1)
    reference, split = (
        [{"like": np.zeros(1)}, {"like": np.zeros(2)}],
        [{"like": np.zeros(1)}, {"like": np.array([0.2, 0.1])}],
    )
    assert split_errors(reference, split, None) == {"like": 0.2}
    assert split_errors(reference, split, routing) == {"like": 0.1}  # the last row is not a tie


def test_the_same_graphs_differ_nowhere(graphs: dict[str, Path]) -> None:
    found = compare_graphs(graphs, graphs, some_requests())
    assert not found.flipped.any()
    assert (found.error == 0).all()
    assert "none differs" in str(found)


def test_the_command_refuses_a_bundle_without_routers(built_bundle: Path, tiny_sources: object) -> None:
    requests = tiny_sources.requests  # type: ignore[attr-defined]
    result = CliRunner().invoke(main, ["routing", str(built_bundle), "--requests", str(requests[0])])
    assert result.exit_code == 2
    assert "no top-k router" in result.output
