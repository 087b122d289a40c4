"""Many threads over one ranker: every score right, memory flat, and a close or a new bundle at any moment."""

__all__ = ["campaign"]
