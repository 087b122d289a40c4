"""What a split saves and where user and item information meet, as text and as a picture."""

from graphs.explain.explain import Explanation, explain
from graphs.explain.picture import draw

__all__ = ["Explanation", "draw", "explain"]
