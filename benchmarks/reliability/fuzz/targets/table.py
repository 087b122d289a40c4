"""The order in which targets are tried."""

from __future__ import annotations

from benchmarks.reliability.fuzz.attack import Target
from benchmarks.reliability.fuzz.targets import bundles, flips, sources

__all__ = ["ORDER"]

#: A try takes the next one, from the start again after the last: what is read most often from elsewhere comes more.
ORDER: tuple[tuple[str, Target], ...] = (
    ("manifest", bundles.manifest),
    ("engine file, hashed again", bundles.engine_file),
    ("Parquet requests", sources.parquet),
    ("recipe", sources.recipe),
    ("every byte of a bundle", flips.flips),
    ("ONNX graph", sources.graph),
    ("checkpoint config.json", sources.checkpoint_config),
    ("npz requests", sources.npz),
    ("--set", sources.setting),
    ("bundle file, hash kept", bundles.damaged_file),
    ("graph of a bundle, hashed again", bundles.model_file),
    ("calibration", sources.calibration),
    ("Arrow requests", sources.arrow),
    ("checkpoint safetensors", sources.checkpoint_weights),
    ("policy", sources.policy),
    ("report, recipe or fixtures of a bundle, hashed again", bundles.side_file),
    ("features.json", sources.features),
)
