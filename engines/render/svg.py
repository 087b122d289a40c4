"""Plots as inline SVG in a common style, so that a page is one self-contained file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graphs.base.errors import printable_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"full": "#8d99ae", "user": "#2a9d8f", "item": "#e76f51", "request": "#264653", "rest": "#d9d9d9"}
_GRID = "#e6ebee"


def new_axes(title: str, width: float = 6.4, height: float = 3.4, *, grid: bool = False) -> tuple[Figure, Any]:
    """Return an empty figure of ``width`` x ``height`` inches and its axes, titled and frameless."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    if grid:
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def to_svg(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element with text as text."""
    import matplotlib  # a slow import that most commands do not need

    _print_verbatim(figure)
    stream = io.StringIO()
    # A fixed salt and no date make the bytes of a page reproducible.
    with matplotlib.rc_context({"svg.hashsalt": "ugsep", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True, bbox_inches="tight")
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _print_verbatim(figure: Figure) -> None:
    """Show the names in a figure as they are: a $ starts no formula, and what no font can draw is escaped."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter, LogFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # labels that were given as texts
                formatter.func = _printable_labels(formatter.func)
            elif isinstance(formatter, LogFormatter):  # its subclass for log axes writes formulas
                axis.set_major_formatter(LogFormatter())
                axis.set_minor_formatter(LogFormatter())
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable_text(text.get_text()))


def _printable_labels(label: Callable[..., str]) -> Callable[..., str]:
    return lambda *at: printable_text(label(*at))
