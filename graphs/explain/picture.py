"""The cut as a picture: a self-contained HTML page, collapsed by module."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jinja2
from torch import fx

from graphs.base.cost import flops, gemm_flops
from graphs.base.errors import printable_text
from graphs.explain.explain import CANDIDATES, Kind, computed_nodes, explain, kind_of
from graphs.explain.text import amount, count, summary
from graphs.split.split import Split
from graphs.trace.node_location import module_path, source_line

_BLOCKS = 18  # per side; beyond, modules are collapsed further
_WIDTH, _HEIGHT, _GAP, _TOP = 330, 46, 16, 40
_LEFT, _RIGHT = 60, 610  # x of user and item blocks


@dataclass(frozen=True)
class Block:
    """A module's nodes of one side and their position on the page."""

    kind: Kind
    path: str
    nodes: tuple[fx.Node, ...]
    x: int
    y: int
    flops: str
    share: float  # of its side's FLOPs
    lines: tuple[tuple[str, str, str, str], ...]  # (node, op, shape, source) of each node

    @property
    def centre(self) -> int:
        """Return the y of the block's centre."""
        return self.y + _HEIGHT // 2


@dataclass(frozen=True)
class Arrow:
    """A path on the page and its label."""

    path: str
    label: str
    state: bool


def draw(split: Split, title: str, candidates: int = CANDIDATES) -> str:
    """Return the page: user modules on the left, item modules on the right, state tensors as arrows between them."""
    blocks = _blocks(split)
    block_of = {node: block for block in blocks for node in block.nodes}
    height = max((b.y for b in blocks), default=0) + _HEIGHT + _TOP
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable_text(value) if type(value) is str else value,
    )
    return environment.get_template("picture.html").render(
        title=title,
        summary=summary(explain(split, candidates)).splitlines(),
        blocks=blocks,
        arrows=[*_inner_arrows(split, blocks, block_of), *_state_arrows(split, block_of)],
        explanation=explain(split, candidates),
        amount=amount,
        count=count,
        width=_RIGHT + _WIDTH + _LEFT,
        height=height,
        block_width=_WIDTH,
        block_height=_HEIGHT,
        columns=((_LEFT, "user graph: once per request"), (_RIGHT, "item graph: per candidate")),
    )


def _blocks(split: Split) -> list[Block]:
    made: list[Block] = []
    for kind, x in (("user", _LEFT), ("item", _RIGHT)):
        nodes = [n for n in computed_nodes(split) if kind_of(split, n) == kind]
        total = sum(flops(n) for n in nodes) or 1
        grouped = _grouped(nodes)
        for row, (path, members) in enumerate(grouped.items()):
            work = sum(flops(n) for n in members)
            made.append(
                Block(
                    "user" if kind == "user" else "item",
                    path or "(model)",
                    tuple(members),
                    x,
                    _TOP + row * (_HEIGHT + _GAP),
                    amount(work, "FLOP"),
                    work / total,
                    tuple(_line(n) for n in members),
                )
            )
    return made


def _grouped(nodes: list[fx.Node]) -> dict[str, list[fx.Node]]:
    """Group nodes by module in execution order, as deep as fits on the page."""
    deepest = max((module_path(n).count(".") + 1 for n in nodes), default=1)
    best: dict[str, list[fx.Node]] = {}
    for depth in range(1, deepest + 1):
        groups: dict[str, list[fx.Node]] = defaultdict(list)
        for node in nodes:
            groups[".".join(module_path(node).split(".")[:depth])].append(node)
        if best and len(groups) > _BLOCKS:
            break
        best = dict(groups)
    return best


def _line(node: fx.Node) -> tuple[str, str, str, str]:
    shape = " x ".join("N" if not isinstance(s, int) else str(s) for s in node.meta["val"].shape)
    work = f"{amount(flops(node), 'FLOP')}" if gemm_flops(node) else ""
    target = str(node.target).removeprefix("aten.").split(".")[0]
    return (target, shape or "1", work, source_line(node))


def _inner_arrows(split: Split, blocks: list[Block], block_of: dict[fx.Node, Block]) -> list[Arrow]:
    """Draw the data flow between blocks of one side along their outer edge."""
    drawn: dict[tuple[str, str, str], Arrow] = {}
    order = {id(b): i for i, b in enumerate(blocks)}
    for block in blocks:
        for node in block.nodes:
            for source in node.all_input_nodes:
                other = block_of.get(source)
                if other is None or other is block or other.kind != block.kind or order[id(other)] > order[id(block)]:
                    continue
                out = -1 if block.kind == "user" else 1
                x = block.x if out < 0 else block.x + _WIDTH
                bulge = x + out * min(16 + (block.y - other.y) // 14, 54)
                path = f"M {x} {other.centre} C {bulge} {other.centre}, {bulge} {block.centre}, {x} {block.centre}"
                drawn[block.kind, other.path, block.path] = Arrow(path, f"{other.path} to {block.path}", False)
    return list(drawn.values())


def _state_arrows(split: Split, block_of: dict[fx.Node, Block]) -> list[Arrow]:
    arrows = []
    for tensor, node in zip(split.state, split.cut.state, strict=True):
        source = block_of.get(node)
        start = f"{_LEFT + _WIDTH} {source.centre if source else _TOP // 2}"
        middle = (_LEFT + _WIDTH + _RIGHT) // 2
        readers = {id(block_of[n]): block_of[n] for n in node.users if n in block_of and block_of[n].kind == "item"}
        shape = " x ".join(str(n) for n in tensor.row_shape) or "1"
        label = (
            f"{tensor.name}: {shape} {str(tensor.dtype).removeprefix('torch.')}, {tensor.bytes_per_user} B per user"
        )
        y = source.centre if source else _TOP // 2
        for reader in readers.values():
            path = f"M {start} C {middle} {y}, {middle} {reader.centre}, {_RIGHT} {reader.centre}"
            arrows.append(Arrow(path, label, True))
    return arrows
