"""Int8 schemes: one config and one registered function each, pure numerics below."""

from quant.schemes.schemes import CONFIGS, SchemeConfig, scheme_from

__all__ = ["CONFIGS", "SchemeConfig", "scheme_from"]
