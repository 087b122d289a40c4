"""The splitter on small models with many edge cases: exact, deterministic, shared weights, readable errors."""

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphs.base.errors import UgsepError
from graphs.split.proof import prove_split
from graphs.split.split import Split, split
from tests.graphs.small_models import WORKS, D, Keywords, N, small


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, D)
        self.bag = nn.EmbeddingBag(9, D, mode="sum")
        self.gru = nn.GRU(D, D, batch_first=True)
        self.out = nn.Linear(4 * D, 2)

    def forward(self, features: dict[str, Tensor], context: tuple[Tensor, Tensor], flag: Tensor) -> Any:
        history = self.table(features["history"])  # [N, L, D]
        mask = torch.arange(history.shape[1]) < features["length"][:, None]
        past, _ = self.gru(history * mask[..., None])
        last = past[torch.arange(past.shape[0]), (features["length"] - 1).clamp(min=0)]
        tags = self.bag(features["tags"])
        item = self.table(context[0]) * flag[:, None]
        logits = self.out(torch.cat([last, tags, item, item * last], 1))
        return {"tasks": {"click": logits[:, 0], "buy": torch.sigmoid(logits[:, 1])}, "extra": [context[1].half()]}


def nested_example() -> dict[str, Any]:
    return {
        "features": {
            "history": torch.randint(0, 9, (N, 5)),
            "length": torch.randint(1, 6, (N,)),
            "tags": torch.randint(0, 9, (N, 3)),
        },
        "context": (torch.randint(0, 9, (N,)), torch.randn(N)),
        "flag": torch.rand(N) > 0.5,
    }


def test_nested_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    split_model = split(
        Nested().eval(), nested_example(), user=["history", "length", "tags"], item=["context.0", "context.1", "flag"]
    )
    assert split_model.user.inputs == ("history", "length", "tags")
    assert split_model.full.outputs == ("output.tasks.click", "output.tasks.buy", "output.extra.0")
    assert prove_split(split_model).max_rel <= 1e-6
    assert split_model.item.outputs == split_model.full.outputs


@pytest.mark.parametrize("name", WORKS)
def test_splits_exactly(name: str) -> None:
    split_model = small(name)
    proof = prove_split(split_model)  # 1, 2 and 257 candidates, 1 and 3 users
    assert proof.max_rel <= 1e-6
    assert split_model.state
    assert all(s.bytes_per_user > 0 for s in split_model.state)
    for stated, found in zip(split_model.state, split_model.user({"u": torch.randn(3, D)}).values(), strict=True):
        assert found.shape == (3, *stated.row_shape)
        assert found.dtype == stated.dtype


def test_positional_example_and_awkward_names() -> None:
    class Awkward(nn.Module):
        def forward(self, input: Tensor, type: Tensor, id: Tensor, **rest: Tensor) -> Tensor:
            return (input.exp() * type * id).sum(-1)

    rows = tuple(torch.randn(N, 3) for _ in range(3))
    split_model = split(Awkward(), rows, user=["input"], item=["type", "id"])
    assert prove_split(split_model).max_rel <= 1e-6

    class Keys(nn.Module):
        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return (x["a.b"].exp() * x["a_b"] * x["class"] * x["1"] * x["state_a_b"]).sum(-1)

    example = {"x": {k: torch.randn(N, 3) for k in ("a.b", "a_b", "class", "1", "state_a_b")}}
    split_model = split(Keys(), example, user=["a.b"], item=["a_b", "class", "1", "state_a_b"])
    assert prove_split(split_model).max_rel <= 1e-6


def test_weights_are_shared_not_copied() -> None:
    model = Keywords(WORKS["tied weights"], a=nn.Linear(D, D))
    split_model = split(model, {"u": torch.randn(N, D), "i": torch.randn(N, D)}, user=["u"], item=["i"])
    for subgraph in (split_model.full, split_model.user, split_model.item):
        held = list(subgraph.module.parameters())
        assert held
        assert {p.data_ptr() for p in held} <= {p.data_ptr() for p in model.parameters()}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(2, 8))
def test_random_graphs(seed: int, steps: int) -> None:
    """A random expression over user, item and parameters: the subgraphs always equal the whole model."""

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
            self.joined = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(2))
            self.norm = nn.LayerNorm(D)

        def forward(self, u: Tensor, i: Tensor) -> dict[str, Tensor]:
            pick = random.Random(seed).choice
            values = [u, i]
            for _ in range(steps):
                a, b = pick(values), pick(values)
                values.append(
                    pick(
                        [
                            lambda a, b: pick(self.layers)(a),
                            lambda a, b: pick(self.joined)(torch.cat([a, b], 1)),
                            lambda a, b: a * b.sigmoid(),
                            lambda a, b: self.norm(a + b),
                            lambda a, b: ((a[:, :, None] @ b[:, None]).softmax(-1) @ b[..., None]).squeeze(-1),
                            lambda a, b: a.view(-1, 2, D // 2).transpose(1, 2).reshape(-1, D) - b.tanh(),
                        ]
                    )(a, b)
                )
            return {"score": (values[-1] + u.exp() * i).sum(-1), "side": values[-2].mean(-1) + i.sum(-1)}

    torch.manual_seed(seed)
    example = {"u": torch.randn(3, D, dtype=torch.float64), "i": torch.randn(3, D, dtype=torch.float64)}
    split_model = split(Random().double().eval(), example, user=["u"], item=["i"])
    assert prove_split(split_model, candidates=(1, 5)).max_rel <= 1e-12


_TWICE = """
import hashlib, sys, torch
sys.path.insert(0, {root!r})
from tests.graphs.split.test_split import fingerprint, small
print(fingerprint(small("tied weights")), fingerprint(small("heads")))
"""


def fingerprint(split_model: Split) -> str:
    text = "".join(h.module.code + repr(h.inputs) for h in (split_model.full, split_model.user, split_model.item))
    return hashlib.sha256((text + repr(split_model.state)).encode()).hexdigest()


def test_two_processes_make_the_same_graphs(pytestconfig: pytest.Config) -> None:
    root = str(pytestconfig.rootpath)
    told = [
        subprocess.run(
            [sys.executable, "-c", _TWICE.format(root=root)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].split() == [fingerprint(small("tied weights")), fingerprint(small("heads"))]


def refused(module: nn.Module, example: Mapping[str, Any], user: list[str], item: list[str]) -> str:
    with pytest.raises(UgsepError) as error:
        split(module, example, user=user, item=item)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_inputs_that_nothing_reads_are_in_no_graph() -> None:
    class Ignoring(nn.Module):
        def forward(self, u: Tensor, more: Tensor, i: Tensor, key: Tensor) -> Tensor:
            return (u.exp() * i).sum(-1)

    example = {"u": torch.randn(N, D), "more": torch.randn(N, 3), "i": torch.randn(N, D), "key": torch.arange(N)}
    made = split(Ignoring(), example, user=["u", "more"], item=["i", "key"])
    assert made.full.inputs == ("u", "i")  # or the whole model would want what requests do not have
    assert (made.user_inputs, made.item_inputs) == (("u", "more"), ("i", "key"))
    assert prove_split(made).max_rel <= 1e-6


def test_bad_sides() -> None:
    model = Keywords(WORKS["dot product"])
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    assert refused(model, example, ["u", "i"], ["i"]) == "input 'i' is on both sides; name it once"
    assert refused(model, example, ["u"], []) == "input 'i' is on neither side; add it to the user or the item inputs"
    assert refused(model, example, ["u", "i"], []) == "no item-side input is named; name at least one"
    assert refused(model, example, ["uu"], ["i"]) == "no input 'uu', did you mean 'u'?"
    twice = {"u": torch.randn(N, D), "i": torch.randn(3, D)}
    assert "different batch sizes {'u': 4, 'i': 3}" in refused(model, twice, ["u"], ["i"])
    assert "is a set; give tensors, numbers or None" in refused(model, {**example, "u": {1.0}}, ["u"], ["i"])
    assert "'float' object has no attribute 'tanh'" in refused(model, {**example, "u": 1.0}, ["u"], ["i"])
    assert "the first axis is the batch" in refused(model, {**example, "u": torch.tensor(1.0)}, ["u"], ["i"])


def test_nothing_on_a_side() -> None:
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    ignores_user = Keywords(lambda m, u, i: i.exp().sum(-1))
    assert "nothing depends on the user inputs ['u']" in refused(ignores_user, example, ["u"], ["i"])
    ignores_item = Keywords(lambda m, u, i: u.exp().sum(-1))
    assert "nothing depends on the item inputs ['i']" in refused(ignores_item, example, ["u"], ["i"])


def test_with_nothing_to_reuse_the_state_is_the_features() -> None:
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    for work, flops in ((lambda m, u, i: u * i, D), (lambda m, u, i: torch.cat([u, i], 1), 0)):
        split_model = split(Keywords(work), example, user=["u"], item=["i"])
        assert [(s.name, s.row_shape) for s in split_model.state] == [("state_u", (D,))]
        assert split_model.full_cost.flops == split_model.item_cost.flops == flops
        assert (split_model.reusable_share, split_model.speedup_limit(256)) == (0.0, 1.0)
        assert prove_split(split_model).max_abs == 0  # the same ops on the same numbers


def test_one_row_of_the_user_beside_many_items() -> None:
    model = Keywords(lambda m, u, i: (m.a(u) * i).sum(-1), a=nn.Linear(D, D)).eval()
    example = {"u": torch.randn(1, D), "i": torch.randn(N, D)}
    split_model = split(model, example, user=["u"], item=["i"])
    assert prove_split(split_model).max_rel <= 1e-6
    one, many = model(**example), split_model.full({"u": example["u"].expand(N, D), "i": example["i"]})["output"]
    assert torch.allclose(one, many, rtol=1e-6, atol=1e-6)  # sums of six terms of size about 1 in another order


def test_optional_inputs_without_a_tensor_are_part_of_the_model() -> None:
    class Optional(nn.Module):
        def forward(self, u: Tensor, i: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            return (u.exp() * i if mask is None else u * mask * i).sum(-1) * scale

    example = {"u": torch.randn(N, D), "i": torch.randn(N, D), "mask": None, "scale": 0.5}
    split_model = split(Optional(), example, user=["u", "mask"], item=["i", "scale"])
    assert split_model.full.inputs == ("u", "i")
    assert prove_split(split_model).max_rel <= 1e-6
    in_order = split(Optional(), tuple(example.values()), user=["u", "mask"], item=["i", "scale"])
    assert in_order.full.inputs == ("u", "i")


def test_an_input_called_user_index() -> None:
    class Taken(nn.Module):
        def forward(self, u: Tensor, user_index: Tensor) -> Tensor:
            return (u.exp() * user_index).sum(-1)

    example = {"u": torch.randn(N, D), "user_index": torch.randn(N, D)}
    assert "an input is named 'user_index'" in refused(Taken(), example, ["u"], ["user_index"])


UNTRACEABLE: dict[str, tuple[Callable[..., Any], str]] = {
    "branch on data": (lambda m, u, i: u * i if u.sum() > 0 else i, "Could not guard on data-dependent expression"),
    "number from data": (lambda m, u, i: u[:, : int(i[0, 0])] * 2, "data-dependent"),
    "numpy": (lambda m, u, i: torch.as_tensor(u.numpy()) * i, ".numpy() is not supported"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_torch_export_refuses_is_readable(name: str) -> None:
    work, reason = UNTRACEABLE[name]
    message = refused(Keywords(work), {"u": torch.randn(N, D), "i": torch.randn(N, D)}, ["u"], ["i"])
    assert message.startswith("torch.export cannot trace the model: ")
    assert reason in message
    assert " at test_split.py:" in message
    assert "`" in message  # the source line itself


def test_a_model_that_fails_on_its_own_example_says_so() -> None:
    for work, rows, reason in (
        (lambda m, u, i: u @ i, torch.randn(N, D), "mat1 and mat2 shapes cannot be multiplied"),
        # Mixed dtypes can be traced, but not run.
        (lambda m, u, i: m.a(u) * i, torch.randn(N, D, dtype=torch.float64), "must have the same dtype"),
    ):
        model = Keywords(work, a=nn.Linear(D, D)).eval()
        with pytest.raises(UgsepError, match="the model fails on rows like its example inputs") as error:
            prove_split(split(model, {"u": rows, "i": torch.randn(N, D)}, user=["u"], item=["i"]))
        assert reason in str(error.value)
    with pytest.raises(
        UgsepError, match=r"\['u', 'j'\] do not match the model's forward: missing a required argument: 'i'"
    ):
        split(model, {"u": torch.randn(N, D), "j": torch.randn(N, D)}, user=["u"], item=["j"])


def test_sizes_that_depend_on_the_batch() -> None:
    example = {"u": torch.randn(N, D), "i": torch.randn(N, D)}
    by_size = Keywords(lambda m, u, i: u.exp() * i if u.shape[0] > 5 else i)
    assert "branches on the number of rows at test_split.py:" in refused(by_size, example, ["u"], ["i"])
    fixed = Keywords(lambda m, u, i: (u.exp() * i).view(7, D))
    assert "works only for 7 rows" in refused(fixed, example, ["u"], ["i"])
    selected = Keywords(lambda m, u, i: u[u > 0].sum() * i)
    assert "shape that depends on data" in refused(selected, example, ["u"], ["i"])


@pytest.mark.slow
def test_a_billion_parameters_split_without_a_copy() -> None:
    from graphs.base.features import random_rows
    from graphs.models.table import model_class
    from tests.graphs.model_laws import FEATURES

    kind = model_class("tokenmixer-large")
    sizes = {"width": 1536, "hidden": 1536, "layers": 2, "user_tokens": 24, "item_tokens": 8}
    with torch.device("meta"):
        model = kind(kind.config_class(features=FEATURES, **sizes)).eval()
    model.to_empty(device="cpu")  # untouched pages take no memory
    assert sum(p.numel() for p in model.parameters()) > 1e9
    sides = {side: [f.name for f in FEATURES if f.side == side] for side in ("user", "item")}
    split_model = split(
        model, {"features": random_rows(FEATURES, 4, torch.Generator())}, user=sides["user"], item=sides["item"]
    )
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = [p for h in (split_model.user, split_model.item) for p in h.module.parameters()]
    copied = sum(p.nbytes for p in held if p.untyped_storage().data_ptr() not in own)
    assert copied == 0
    assert split_model.hoisted
