"""Int8 schemes: one config and one registered function each, pure numerics below."""

__all__ = ["awq", "bias", "numerics", "schemes"]
