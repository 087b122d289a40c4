"""Replacing the bundle that serves: noticing a new one, loading and proving it, switching, going back."""

__all__ = ["admin", "admin_client", "loading", "swap_log", "watcher"]
