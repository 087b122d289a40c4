"""From a model to a verified bundle."""

__all__ = [
    "catalogue",
    "graph_exports",
    "pipeline",
    "random_checkpoint",
    "schemes",
    "schemes_page",
    "source_model",
    "sources",
    "streaming",
]
