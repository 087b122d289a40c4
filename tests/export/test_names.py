"""Names of nodes and values: what one pass writes, another pass or a backend finds again."""

from __future__ import annotations

from export import names


def test_slices_are_numbered_after_the_whole() -> None:
    assert names.sliced("ffn.up.weight", 3) == "ffn.up.weight[3]"
    assert names.sliced("ffn.up.weight", 3, 1) == "ffn.up.weight[3,1]"
    assert names.routed("y", names.of_index("hidden", 0, 1)) == "y.moe.[0,1].hidden"


def test_a_derived_name_parses_back() -> None:
    assert names.derived("w", "scale", "column") == "w.scale.column"
    assert names.without(names.derived("w", "T"), "T") == "w"
    assert names.without("w.T.scale", "T") == "w.T.scale"


def test_constants_of_a_graph_do_not_depend_on_who_asks_first() -> None:
    assert names.shared("axes", 0) == "lowering.axes.0"
    assert names.shared("ints", 0, -1) == "lowering.ints.0.-1"
    assert names.shape([-1, 8]) == "shape.-1x8"


def test_compiled_layers_are_traced_by_the_names_of_their_nodes() -> None:
    weight = names.merged(["a", "b"])
    assert (names.dequantize_node(weight), names.gemm_node(weight)) == ("int8:a+b", "gemm:a+b")
    assert names.numbered_node(4, "Add") == "4:Add"
    assert names.step_node("w", "dequantize") == "w/dequantize"
