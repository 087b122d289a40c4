"""Models of other packages, split, exported, measured and built: the test bed behind docs/third-party-models.md."""

__all__: list[str] = []
