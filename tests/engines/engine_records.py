"""A tiny engine record for manifest and bundle tests."""

from engines.backends.built_engine import BuiltEngine, EngineWeight, TensorSpec
from engines.backends.engine_spec import Profile, Rows
from engines.bundle.manifest import Engine


def tiny_engine(directory: str, file: str) -> Engine:
    return Engine(
        directory,
        BuiltEngine(
            backend="onnxruntime",
            side="item",
            precision="w8a32",
            files=(file,),
            bytes=7,
            inputs=(TensorSpec("x", "float32", ("candidates", 3)),),
            outputs=(TensorSpec("click", "float32", ("candidates",)),),
            session={"intra_op_num_threads": 1, "session.disable_quant_qdq": "1", "spin": False},
            requires={"isa": "zen4"},
            tools={"onnxruntime": "1.31.1"},
            profiles=(Profile(Rows(1, 1, 4), Rows(1, 64, 256)),),
            weights=(EngineWeight("w", "folded-to-float", "MatMul"),),
            figures={"build_seconds": 1.0},
            notes=("a note",),
        ),
    )
