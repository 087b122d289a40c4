"""The explanation adds up and names the first meeting; the picture is a page without external resources."""

import re
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from graphs.base.cost import flops
from graphs.explain.explain import explain
from graphs.explain.picture import draw
from graphs.explain.text import amount, render, summary
from graphs.split.split import Split, split
from tests.graphs.split.blocks.sequence_models import APART, COUPLED, Sequence, sequence_example

N = 4


class Mixer(nn.Module):
    """A user tower, then a network over everything: the concatenation keeps the user's columns from being reused."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9))
        self.body = nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.own = nn.Sequential(nn.Linear(9, 64), nn.Tanh(), nn.Linear(64, 64))
        self.head = nn.Linear(64, 1)
        self.masked = masked

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        u = self.tower(u)
        y: Tensor = self.body(torch.cat([u, i], -1))
        return self.head(y + self.own(u) if self.masked else y).squeeze(-1)


@pytest.fixture(scope="module")
def plain() -> Split:
    torch.manual_seed(0)
    return split(Mixer(False).eval(), {"u": torch.randn(N, 6), "i": torch.randn(N, 3)}, user=["u"], item=["i"])


@pytest.fixture(scope="module")
def masked() -> Split:
    torch.manual_seed(0)
    return split(Mixer(True).eval(), {"u": torch.randn(N, 6), "i": torch.randn(N, 3)}, user=["u"], item=["i"])


def test_costs_add_up(plain: Split, masked: Split) -> None:
    for split_model in (plain, masked):
        told = explain(split_model, 100)
        assert sum(m.user_flops for m in told.modules) == told.user_flops
        assert sum(m.item_flops for m in told.modules) == told.item_flops
        assert told.full_flops == sum(flops(n) for n in split_model.full.module.graph.nodes)
        assert told.speedup_limit == pytest.approx(100 * told.full_flops / (told.user_flops + 100 * told.item_flops))
    # 2 * 6 * 12 + 2 * 12 * 9 products, 12 ReLUs; biases count with the product
    assert explain(plain).user_flops == 2 * 6 * 12 + 12 + 2 * 12 * 9
    paths = {m.path: m for m in explain(masked).modules}
    assert paths["tower"].sides == paths["own"].sides == ("user",)
    assert paths["body"].sides == ("item",)
    assert paths["tower"].weight_bytes == 4 * (6 * 12 + 12 + 12 * 9 + 9)


def test_first_meeting_and_what_masking_wins(plain: Split) -> None:
    told = explain(plain, 256)
    (meeting,) = told.meetings
    assert meeting.where.startswith("cat.default in the model (test_explain.py:")
    assert meeting.user_share == pytest.approx(9 / 12)
    body = 2 * 12 * 64 + 64 + 2 * 64 * 64 + 64 + 2 * 64
    assert meeting.downstream_flops == body
    assert meeting.movable_flops == int(0.75 * body)
    kept = told.item_flops - meeting.movable_flops
    expected = 256 * told.full_flops / (told.user_flops + meeting.movable_flops + 256 * kept)
    assert meeting.speedup_limit == pytest.approx(expected)
    assert meeting.speedup_limit > 3 > 1.2 > told.speedup_limit


def test_text(plain: Split) -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    told = explain(plain)
    console.print(render(told))
    text = console.export_text()
    assert summary(told).splitlines()[0] in text
    for expected in ("tower", "body", "state_tower_2", "first meets item information", "test_explain.py:", "float32"):
        assert expected in text
    assert amount(1234567, "FLOP") == "1.23 MFLOP"
    assert amount(7, "B") == "7 B"


def test_picture_is_self_contained_and_complete(masked: Split) -> None:
    page = draw(masked, "a <model>")
    assert "a &lt;model&gt;" in page
    assert not re.search(r"(src|href)=|url\((?!#)|https?://|@import|<script", page)
    assert page.count('class="state"') == sum(
        len({n for n in node.users if masked.sides[n] == "item"}) for node in masked.cut.state
    )
    for name in [s.name for s in masked.state] + ["tower", "own", "body", "head"]:
        assert name in page

    class Balanced(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "path", "rect", "br"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            return

        def handle_endtag(self, tag: str) -> None:
            if tag != "path":
                assert self.open_tags.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert parser.open_tags == []


def test_picture_does_not_depend_on_the_run(masked: Split) -> None:
    assert draw(masked, "m") == draw(masked, "m")


def test_an_attention_that_a_mask_would_separate_is_named() -> None:
    torch.manual_seed(0)
    model = Sequence(COUPLED["unmasked"], layers=1).eval()
    e = explain(split(model, sequence_example(), user=["history"], item=["item"]))
    console = Console(width=200, record=True, file=StringIO())
    console.print(render(e))
    text = console.export_text()
    (row,) = (line for line in text.splitlines() if "scaled_dot_product_attention" in line and "79%" in line)
    assert "layers.0" in row  # 11 of 14 positions are the history's
    masked = Sequence(APART["is_causal"], layers=1).eval()
    assert not explain(split(masked, sequence_example(), user=["history"], item=["item"])).unmasked
