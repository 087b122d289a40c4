"""The quantization schemes: one frozen config and one registered handler each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from graphs.base.errors import UgsepError, nearest
from quant.calibration.statistics import InputStatistics
from quant.schemes import numerics
from quant.schemes.gptq import gptq
from quant.schemes.numerics import Floats, Ints


@dataclass(frozen=True)
class Absmax:
    """The largest magnitude of a channel maps to 127; needs no calibration."""


@dataclass(frozen=True)
class Mse:
    """Clip each channel where the calibrated output error is least."""

    ratios: tuple[float, ...] = numerics.CLIP_RATIOS
    threads: int = 2


@dataclass(frozen=True)
class Gptq:
    """Error feedback along K with the Gram matrix of the inputs, on the clipping of ``mse``."""

    damping: float = 0.01
    threads: int = 2


@dataclass(frozen=True)
class Awq:
    """Input channels with large activations are scaled up before rounding, on the clipping of ``mse``.

    The graph takes the inverse factors (see :mod:`quant.schemes.awq`); ``alphas`` are the exponents tried.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
    threads: int = 2


@dataclass(frozen=True)
class Quantized:
    """int8 values [..., K, N] and their float32 scale [..., B, N]."""

    values: Ints
    scale: Floats


SchemeConfig = Absmax | Mse | Gptq | Awq
Handler = Callable[[Any, Floats, InputStatistics | None, int], Quantized]
_Config = TypeVar("_Config")

CONFIGS: dict[str, type[SchemeConfig]] = {
    "absmax": Absmax,
    "mse": Mse,
    "gptq": Gptq,
    "awq": Awq,
}
_HANDLERS: dict[type, Handler] = {}


def register(config: type) -> Callable[[Handler], Handler]:
    """Register the function that handles a config: (config, weight, statistics, block) -> Quantized."""

    def add(handler: Handler) -> Handler:
        _HANDLERS[config] = handler
        return handler

    return add


def scheme_name(config: SchemeConfig) -> str:
    """Return the name a config is known by."""
    return next(name for name, known in CONFIGS.items() if known is type(config))


def scheme_from(name: str, options: Mapping[str, Any] | None = None) -> SchemeConfig:
    """Return the config of a name with its options.

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


def needs_calibration(config: SchemeConfig) -> bool:
    """Whether the scheme cannot work without input statistics."""
    return not isinstance(config, Absmax)


def quantize_weight(
    config: SchemeConfig, weight: Floats, statistics: InputStatistics | None, block: int
) -> Quantized:
    """Quantize one weight [K, N] or [T, K, N], ``block`` rows of K per scale (0: all)."""
    return _HANDLERS[type(config)](config, weight, statistics, block)


@register(Absmax)
def _absmax(config: Absmax, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    scale = numerics.absmax_scale(weight, block)
    return Quantized(numerics.quantize(weight, scale), scale)


@register(Mse)
@register(Awq)
def _mse(config: Mse | Awq, weight: Floats, statistics: InputStatistics | None, block: int) -> Quantized:
    moments = _calibrated(config, statistics).moments
    ratios = config.ratios if isinstance(config, Mse) else numerics.CLIP_RATIOS
    scale = numerics.mse_scale(weight, moments, block, ratios, config.threads)
    return Quantized(numerics.quantize(weight, scale), scale)


@register(Gptq)
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


def _calibrated(config: SchemeConfig, statistics: InputStatistics | None) -> InputStatistics:
    if statistics is None:
        name = scheme_name(config)
        raise UgsepError(f"scheme '{name}' needs calibration; run quant calibrate, or use 'absmax'")
    return statistics
