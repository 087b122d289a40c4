"""The reason a bundle records for the engines that ``BACKEND=auto`` chose."""

from engines.build.autoselect import Choice, Trial
from engines.compile.compile import EnginePlan


def test_the_reason_names_the_time_the_others_and_what_could_not_run() -> None:
    tried = (
        Trial("user", "tensorrt", "any", float("inf"), False, "no libraries:\n\tlibnvinfer.so"),
        Trial("user", "openvino", "fp16", 0.25, False, "SQNR 20 < 35"),
        Trial("user", "onnxruntime", "w8a32", 0.5, True, "keeps parity"),
        Trial("user", "onnxruntime", "fp32", 0.75, True, "keeps parity"),
        Trial("item", "onnxruntime", "fp32", 3.0, True, "keeps parity"),
    )
    plans = (EnginePlan("user", "onnxruntime", "w8a32"), EnginePlan("item", "onnxruntime", "fp32"))
    found = Choice(plans, tried).reasons()
    assert found["item"] == "onnxruntime fp32 takes 3.000 ms, the fastest of 1 that keep parity"
    assert found["user"] == (
        "onnxruntime w8a32 takes 0.500 ms, the fastest of 2 that keep parity; "
        "tensorrt any: not run, no libraries: libnvinfer.so; openvino fp16: 0.250 ms, SQNR 20 < 35; "
        "onnxruntime fp32: 0.750 ms, keeps parity"
    )
    assert found["user"].isprintable()
