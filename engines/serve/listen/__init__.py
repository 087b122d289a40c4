"""The sockets of the server."""

__all__ = ["http_listener", "signals"]
