"""Separation along an axis within a row: what each op computes from the user's positions, and from the rest."""

__all__ = [
    "in_order",
    "known_values",
    "low_rank",
    "narrowing",
    "positions",
    "products",
    "regions",
    "unmerged",
    "weighted",
    "written_out",
]
