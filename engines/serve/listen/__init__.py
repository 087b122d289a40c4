"""The sockets of the server."""

__all__ = ["closing", "http_listener", "signals"]
