"""Other ways to serve the whole model, one file per runtime."""

from engines.bench.baselines.table import BASELINES, choose_baselines

__all__ = ["BASELINES", "choose_baselines", "contract"]
