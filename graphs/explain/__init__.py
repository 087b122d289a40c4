"""What a split saves and what keeps user and item together, in words and as a picture."""

from graphs.explain.explain import Explanation, explain
from graphs.explain.picture import draw

__all__ = ["Explanation", "draw", "explain"]
