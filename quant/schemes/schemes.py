"""The quantization schemes: one frozen config and one registered handler each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphs.base.errors import UgsepError, nearest
from quant.arrays import Array, Floats, Ints
from quant.calibration.statistics import InputStatistics, SideStatistics
from quant.graph.gemms import Weight
from quant.schemes import numerics
from quant.schemes.awq import AwqPlan, plan_awq
from quant.schemes.gptq import gptq


@dataclass(frozen=True)
class SchemeConfig:
    """Options of a scheme, each with a default; a subclass per scheme, handled by a registered function."""

    needs_calibration: ClassVar[bool] = True
    needs_grams: ClassVar[bool] = False


@dataclass(frozen=True)
class Quantized:
    """int8 values [..., K, N] and their float32 scale [..., B, N]."""

    values: Ints
    scale: Floats


@dataclass(frozen=True)
class Absmax(SchemeConfig):
    """The largest magnitude of a channel maps to 127; needs no calibration."""

    needs_calibration: ClassVar[bool] = False


@dataclass(frozen=True)
class Mse(SchemeConfig):
    """Clip each channel at the point of least calibrated output error."""

    ratios: tuple[float, ...] = numerics.CLIP_RATIOS
    threads: int = 2


@dataclass(frozen=True)
class Gptq(SchemeConfig):
    """Error feedback along K with the Gram matrix of the inputs, on the clipped scales of ``mse``."""

    needs_grams: ClassVar[bool] = True
    damping: float = 0.01
    threads: int = 2


@dataclass(frozen=True)
class Awq(SchemeConfig):
    """Input channels with large activations are scaled up before rounding, on the clipped scales of ``mse``.

    The graph takes the inverse factors (see :mod:`quant.schemes.awq`); ``alphas`` are the exponents tried.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
    threads: int = 2


Handler = Callable[[Any, Floats, InputStatistics | None, int], Quantized]

#: Filled by ``register``, in the order of the handlers below.
CONFIGS: dict[str, type[SchemeConfig]] = {}
_HANDLERS: dict[type[SchemeConfig], Handler] = {}


def register(name: str, config: type[SchemeConfig]) -> Callable[[Handler], Handler]:
    """Register a scheme and the function that handles it: (config, weight, statistics, block) -> Quantized."""

    def add(handler: Handler) -> Handler:
        CONFIGS[name], _HANDLERS[config] = config, handler
        return handler

    return add


def scheme_name(config: SchemeConfig) -> str:
    """Return the name of a config's scheme."""
    return next(name for name, known in CONFIGS.items() if known is type(config))


def scheme_from(name: str, options: Mapping[str, Any] | None = None) -> SchemeConfig:
    """Return the config of a scheme with the given options.

    Raises:
        UgsepError: an unknown scheme or option.
    """
    if name not in CONFIGS:
        raise UgsepError(f"unknown scheme '{name}'{nearest(name, CONFIGS)}")
    known = {f.name for f in fields(CONFIGS[name])}
    for option in options or {}:
        if option not in known:
            raise UgsepError(f"scheme '{name}' has no option '{option}'{nearest(option, known)}")
    return CONFIGS[name](**(options or {}))


def needs_grams(names: Iterable[str]) -> bool:
    """Whether any of the named schemes reads Gram matrices, which take most of a calibration's time."""
    return any(CONFIGS[name].needs_grams for name in names if name in CONFIGS)


def check_calibrated(config: SchemeConfig, calibration: object | None) -> None:
    """Refuse a scheme that needs calibration without it.

    Raises:
        UgsepError: the scheme's name, and how to calibrate.
    """
    if config.needs_calibration and calibration is None:
        raise UgsepError(f"scheme '{scheme_name(config)}' needs calibration; run quant calibrate, or use 'absmax'")


def scaling_plan(
    config: SchemeConfig,
    model: ir.Model,
    weights: tuple[Weight, ...],
    statistics: SideStatistics | None,
    read: Callable[[str], Array],
    block: int,
) -> AwqPlan:
    """Return the factors that awq folds into a graph (see :func:`plan_awq`); none for the other schemes."""
    if not isinstance(config, Awq) or statistics is None:
        return AwqPlan({}, {})
    return plan_awq(model, weights, statistics.of, read, config.alphas, block)


def quantize_weight(
    config: SchemeConfig, weight: Floats, statistics: InputStatistics | None, block: int
) -> Quantized:
    """Quantize one weight [K, N] or [T, K, N], ``block`` rows of K per scale (0: all)."""
    return _HANDLERS[type(config)](config, weight, statistics, block)


@register("absmax", Absmax)
def _absmax(config: Absmax, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    scale = numerics.absmax_scale(weight, block)
    return Quantized(numerics.quantize(weight, scale), scale)


@register("mse", Mse)
def _mse(config: Mse, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    seen = _calibrated(config, statistics)
    scale = numerics.mse_scale(weight, seen.moments, block, config.ratios, config.threads)
    return Quantized(numerics.quantize(weight, scale), scale)


@register("gptq", Gptq)
def _gptq(config: Gptq, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    seen = _calibrated(config, statistics)
    if seen.gram is None:
        raise UgsepError("scheme 'gptq' needs Gram matrices; run quant calibrate --gram")
    scale = numerics.mse_scale(weight, seen.moments, block, threads=config.threads)
    plain_scale = numerics.absmax_scale(weight, block)
    values = np.empty(weight.shape, np.int8)
    for token in np.ndindex(weight.shape[:-2]):  # one empty index for a 2-D weight
        w, gram = weight[token], seen.gram[token]
        values[token], scale[token] = gptq(w, scale[token], gram, config.damping, plain_scale[token])
    return Quantized(values, scale)


@register("awq", Awq)
def _awq(config: Awq, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    return _mse(Mse(threads=config.threads), weight, _calibrated(config, statistics), block)


def _calibrated(config: SchemeConfig, statistics: InputStatistics | None) -> InputStatistics:
    check_calibrated(config, statistics)
    assert statistics is not None
    return statistics
