"""The layers of token-mixing models, with and without UG-Sep."""

from graphs.layers.tokenwise import RMSNorm, TokenwiseFFN, TokenwiseLinear, TokenwiseSwiGLU
from graphs.layers.ugsep import Tokens, masked_mix, separate

__all__ = ["RMSNorm", "Tokens", "TokenwiseFFN", "TokenwiseLinear", "TokenwiseSwiGLU", "masked_mix", "separate"]
