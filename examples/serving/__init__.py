"""Two servers of one bundle behind HAProxy, and a client that does not notice when one of them dies."""

__all__: list[str] = []
