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
