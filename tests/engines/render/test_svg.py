from __future__ import annotations

from engines.render.svg import new_axes, to_svg


def test_the_same_plot_has_the_same_bytes() -> None:
    drawn = []
    for _ in range(2):
        figure, axes = new_axes("A title", grid=True)
        axes.plot([1, 2], [3, 4])
        drawn.append(to_svg(figure))
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("<svg")
    assert "A title" in drawn[0], "text stays text"


def test_log_axes_are_labelled_with_numbers() -> None:
    figure, axes = new_axes("A title")
    axes.plot([1e-6, 1e-2], [10, 1000])
    axes.set_xscale("log")
    axes.set_yscale("log")
    drawn = to_svg(figure)
    assert "mathdefault" not in drawn, "formulas are off, so their source would be printed"
    for label in (">100<", ">1e\N{MINUS SIGN}04<"):
        assert label in drawn
