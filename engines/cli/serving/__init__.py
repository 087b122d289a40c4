"""The commands of a running server: start it, put a proxy before several, switch it back."""

__all__ = ["rollback", "serve"]
